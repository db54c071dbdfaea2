"""Single weights of graphs: what their matrices are, what enters them, and what is removed, against
references in float64 that are written in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper

from compression.anatomy.graph import graph_inspection
from compression.anatomy.graph_sites import GraphSite
from compression.cutting import PruneSettings
from compression.granularity.base import parse_granularity
from compression.graphs.batches import Batch
from compression.graphs.executor import GraphModule, to_torch
from compression.graphs.graph import Graph, read_graph
from compression.graphs.weights.evidence import dense_inputs
from compression.graphs.weights.inputs import block_diagonal, input_rows, positions
from compression.graphs.weights.matrices import matrix, stored_form, weights_of
from compression.graphs.weights.pruning import Pruned, allocate, prune
from compression.loading.admission import admit_model
from compression.loading.sources import PathSource
from tests.engine.graphs.samples import floats, model_of, runtime

EXPORTED = Path(__file__).parent / "exported"

# operator, attributes, input, weight
CASES: list[tuple[str, dict[str, Any], NDArray[Any], NDArray[Any]]] = [
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}, floats(2, 6, 7, 8),
     floats(4, 6, 3, 2)),
    ("Conv", {"group": 3, "pads": [1, 1, 1, 1]}, floats(2, 6, 5, 5), floats(9, 2, 3, 3)),
    ("Conv", {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, floats(2, 6, 5, 6),
     floats(6, 1, 3, 3)),
    ("Conv", {"strides": [2]}, floats(2, 4, 9), floats(3, 4, 3)),
    ("Conv", {"pads": [1] * 6}, floats(2, 2, 4, 3, 5), floats(3, 2, 3, 3, 3)),
    ("ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 0, 1], "dilations": [2, 1]}, floats(2, 4, 5, 4),
     floats(4, 3, 3, 2)),
    ("ConvTranspose", {"group": 2, "strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
     floats(2, 6, 4, 4), floats(6, 2, 3, 3)),
    ("ConvTranspose", {"strides": [2]}, floats(2, 3, 5), floats(3, 4, 2)),
    ("Gemm", {"transB": 1}, floats(3, 5), floats(4, 5)),
    ("Gemm", {}, floats(3, 5), floats(5, 4)),
    ("MatMul", {}, floats(2, 3, 5), floats(5, 4)),
]  # fmt: skip


def graph_of(nodes: list[Any], x: NDArray[Any], **weights: NDArray[Any]) -> Graph:
    return read_graph(model_of(nodes, {"x": x}, ["y"], weights, 20))


@pytest.mark.parametrize(("operator", "attributes", "x", "weight"), CASES)
def test_rows_times_the_matrix_are_what_a_node_gives(
    operator: str, attributes: dict[str, Any], x: NDArray[Any], weight: NDArray[Any]
) -> None:
    graph = graph_of([helper.make_node(operator, ["x", "w"], ["y"], **attributes)], x, w=weight)
    (site,) = weights_of(graph).sites
    values = matrix(site, torch.from_numpy(weight))
    assert tuple(values.shape) == site.shape
    assert torch.equal(stored_form(site, values, weight.shape), torch.from_numpy(weight))
    rows = input_rows(site, graph.nodes[0], torch.from_numpy(x))
    assert rows.shape[1] == positions(site, graph.nodes[0], torch.from_numpy(x))
    made = torch.einsum("gpi,goi->pgo", rows, values.reshape(site.groups, site.rows, -1)).flatten(1)
    wanted = runtime(graph, {"x": x})[0]
    found = made.reshape(-1, site.shape[0]).numpy()
    last = wanted.reshape(*wanted.shape[:2], -1).transpose(0, 2, 1) if "Conv" in operator else wanted
    assert np.allclose(found, last.reshape(-1, site.shape[0]), atol=1e-5)
    whole = rows.transpose(0, 1).flatten(1) @ block_diagonal(site, values).T
    assert torch.allclose(whole, made, atol=1e-5)


def test_a_matrix_on_the_left() -> None:
    x, weight = floats(2, 5, 3), floats(4, 5)
    graph = graph_of([helper.make_node("MatMul", ["w", "x"], ["y"])], x, w=weight)
    (site,) = weights_of(graph).sites
    rows = input_rows(site, graph.nodes[0], torch.from_numpy(x))[0]
    made = (rows @ matrix(site, torch.from_numpy(weight)).T).reshape(2, 3, 4).transpose(1, 2)
    assert np.allclose(made.numpy(), runtime(graph, {"x": x})[0], atol=1e-5)


def test_what_is_read_in_another_way_is_no_site() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Add", ["x", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "turned"], ["y"]),
    ]
    found = weights_of(
        graph_of(nodes, floats(2, 4), table=floats(6, 4), ids=np.array([1, 2]), w=floats(4, 4))
    )
    assert [site.name for site in found.sites] == ["w"]
    assert found.whole == {"table": "Gather reads it too"}


@pytest.mark.parametrize("path", sorted(EXPORTED.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_gateway_finds_the_same_matrices(path: Path) -> None:
    inspection = graph_inspection(admit_model({path.name: PathSource(path)}).inspection)
    graph = read_graph(path)
    found = weights_of(graph)
    assert inspection.sites == found.sites
    assert all(site.size == graph.initializers[site.name].size for site in found.sites)


# -- what is removed


def network() -> tuple[Graph, list[Batch]]:
    """A convolution, one by channels, a grouped one of three groups, and a product: on three batches."""
    nodes = [
        helper.make_node("Conv", ["x", "one", "bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "deep"], ["c"], pads=[1, 1, 1, 1], group=6),
        helper.make_node("Conv", ["c", "parts"], ["d"], strides=[2, 2], group=3),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Transpose", ["last"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["g", "turned"], ["y"]),
    ]
    weights = {
        "one": floats(6, 4, 3, 3), "bias": floats(6), "deep": floats(6, 1, 3, 3),
        "parts": floats(9, 2, 3, 3), "last": floats(5, 9),
    }  # fmt: skip
    x = np.random.default_rng(5).standard_normal((7, 4, 8, 8)).astype(np.float32)
    batches = [Batch({"x": torch.from_numpy(part)}) for part in np.split(x, [3, 6])]
    return graph_of(nodes, x[:2], **weights), batches


def removed(settings: PruneSettings, batches: list[Batch] | None, graph: Graph) -> Pruned:
    weights = weights_of(graph)
    counts = allocate(graph, weights, settings, batches, lambda done, total: None)
    assert sum(counts.values()) == settings.remove_total
    return prune(graph, weights, settings, counts, batches)


def settings_for(criterion: str, share: float, graph: Graph, **more: Any) -> PruneSettings:
    total = round(share * sum(site.size for site in weights_of(graph).sites))
    return PruneSettings(criterion, parse_granularity("unstructured"), total, **more)


def plain_inputs(graph: Graph, batches: list[Batch]) -> dict[str, Any]:
    """By weight, its inputs as torch unfolds them: float64 [groups, channels, places, positions]."""
    values = {"one": "x", "deep": "b", "parts": "c", "last": "g"}
    found = {}
    with torch.no_grad():
        seen = [GraphModule(graph).run({"x": batch.inputs["x"]}, [*values.values()]) for batch in batches]
    for name, value in values.items():
        x = torch.cat([one[value] for one in seen]).double()
        if name == "last":
            found[name] = x.T[None, :, None]
            continue
        stride, pad, groups = KERNELS[name]
        patches = F.unfold(x, 3, padding=pad, stride=stride)
        parts = patches.reshape(len(x), groups, x.shape[1] // groups, 9, -1)
        found[name] = parts.permute(1, 2, 3, 0, 4).flatten(3)
    return found


KERNELS = {"one": (1, 1, 1), "deep": (1, 1, 6), "parts": (2, 0, 3)}


def test_wanda_of_convolutions() -> None:
    graph, batches = network()
    inputs = plain_inputs(graph, batches)
    made = removed(settings_for("wanda", 0.5, graph, sequential=False), batches, graph)
    for site in weights_of(graph).sites:
        stored = to_torch(graph.initializers[site.name], "").double()
        norms = inputs[site.name].square().sum(-1).sqrt()
        shape = (site.groups, site.rows, *norms.shape[1:])
        worth = (stored.abs().reshape(shape) * norms[:, None]).reshape(site.shape[0], -1)
        kept = to_torch(made.graph.initializers[site.name], "").reshape(site.shape[0], -1) != 0
        for row in range(site.shape[0]):
            gone = int((~kept[row]).sum())
            assert abs(gone - site.shape[1] / 2) <= 1
            assert set(worth[row].argsort()[:gone].tolist()) == set((~kept[row]).nonzero().flatten().tolist())


def test_products_of_inputs_group_by_group() -> None:
    graph, batches = network()
    weights = weights_of(graph)
    inputs = plain_inputs(graph, batches)
    found = dense_inputs(graph, weights, weights.sites, batches, frozenset({"hessian", "means"}))
    for site in weights.sites:
        known = found[site.name].statistics()
        assert len(known) == site.groups
        for place, one in enumerate(known):
            rows = inputs[site.name][place].transpose(0, 1).flatten(0, 1)
            wanted = rows @ rows.T
            assert torch.allclose(one.need("hessian").double(), wanted, rtol=1e-4, atol=1e-3)
            assert torch.allclose(one.need("means").double(), rows.mean(1), atol=1e-5)
            assert torch.allclose(one.column_norms.double(), wanted.diagonal().sqrt(), rtol=1e-5)


def test_least_squares_in_every_group() -> None:
    graph, batches = network()
    inputs = plain_inputs(graph, batches)
    settings = settings_for("magnitude", 0.4, graph, sequential=False, update=("least-squares",))
    made = removed(settings, batches, graph)
    for site in weights_of(graph).sites:
        dense, pruned = (
            to_torch(one.initializers[site.name], "").double().reshape(site.groups, site.rows, -1)
            for one in (graph, made.graph)
        )
        for place in range(site.groups):
            rows = inputs[site.name][place].flatten(0, 1).T
            if len(rows) < rows.shape[1]:
                continue
            for row in range(site.rows):
                kept = pruned[place, row] != 0
                best = torch.linalg.lstsq(rows[:, kept], rows @ dense[place, row]).solution
                assert torch.allclose(pruned[place, row][kept], best, rtol=1e-2, atol=1e-2)


def test_updates_lose_less_than_masks_alone() -> None:
    graph, batches = network()
    plain = removed(settings_for("wanda", 0.6, graph), batches, graph)
    better = removed(settings_for("wanda", 0.6, graph, update=("sparsegpt",)), batches, graph)
    lost = [sum(fact["reconstruction_error"] for fact in made.facts) for made in (plain, better)]
    assert lost[1] < lost[0]
    assert [fact["removed"] for fact in plain.facts] == [fact["removed"] for fact in better.facts]


def test_biases_make_up_for_means() -> None:
    graph, batches = network()
    made = removed(settings_for("wanda", 0.6, graph, update=("bias-compensation",)), batches, graph)
    plain = removed(settings_for("wanda", 0.6, graph), batches, graph)
    assert not np.array_equal(made.graph.initializers["bias"], graph.initializers["bias"])
    assert made.facts[0]["reconstruction_error"] < plain.facts[0]["reconstruction_error"]
    assert graph.initializers.keys() == made.graph.initializers.keys()


def test_later_weights_see_what_earlier_ones_lost() -> None:
    graph, batches = network()
    settings = settings_for("wanda", 0.5, graph)
    whole = removed(settings, batches, graph)
    by_hand = graph
    for site in weights_of(graph).sites:
        weights = weights_of(by_hand)
        counts = {fact["name"]: fact["removed"] for fact in whole.facts}
        # Everything but this site is left alone: what is before it is pruned already, what is behind is not.
        alone = type(weights)((site,), weights.readers, weights.paths, weights.whole)
        by_hand = prune(by_hand, alone, settings, counts, batches).graph
    for name, array in whole.graph.initializers.items():
        assert np.array_equal(array, by_hand.initializers[name]), name


def test_a_matrix_that_is_used_twice_sees_both_inputs() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    x, weight = floats(20, 6), floats(6, 6)
    graph = graph_of(nodes, x, w=weight)
    batches = [Batch({"x": torch.from_numpy(x)})]
    made = removed(settings_for("wanda", 0.5, graph, comparison="layer"), batches, graph)
    second = np.maximum(x.astype(np.float64) @ weight, 0)
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(0) + (second**2).sum(0))
    worth = np.abs(weight) * norms[:, None]
    gone = made.graph.initializers["w"] == 0
    assert gone.sum() == 18
    assert worth[gone].max() < worth[~gone].min()


def test_densities_by_the_shapes_of_kernels() -> None:
    graph, _ = network()
    made = removed(settings_for("magnitude", 0.5, graph, allocation="erk", minimum_density=0.0), None, graph)
    shares = {site.name: sum(site.extents) / site.size for site in weights_of(graph).sites}
    assert weights_of(graph).sites[2].extents == (9, 2, 3, 3)
    densities = {fact["name"]: fact["kept"] / (fact["kept"] + fact["removed"]) for fact in made.facts}
    ratios = [densities[name] / share for name, share in shares.items() if densities[name] < 1]
    assert len(ratios) > 1
    assert max(ratios) / min(ratios) < 1.2


def test_random_weights_depend_on_the_seed_alone() -> None:
    graph, _ = network()
    found = [removed(settings_for("random", 0.5, graph, seed=seed), None, graph) for seed in (1, 1, 2)]
    arrays = [made.graph.initializers["parts"] for made in found]
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


@pytest.mark.parametrize(("granularity", "fits"), [
    ("2:4", ["one"]), ("1:2", ["one", "parts"]), ("3x1", ["one", "parts"]), ("2x2", ["one"]),
    ("5x3", ["last"]),
    ("unstructured", ["one", "deep", "parts", "last"]),
])  # fmt: skip
def test_patterns_run_along_the_channels(granularity: str, fits: list[str]) -> None:
    graph, batches = network()
    weights = weights_of(graph)
    sites = [site for site in weights.sites if site.fits(granularity)]
    assert [site.name for site in sites] == fits
    if granularity not in ("2:4", "1:2"):
        return
    keep, size = map(int, granularity.split(":"))
    settings = PruneSettings("wanda", parse_granularity(granularity), sum(site.size for site in sites) // 2)
    part = type(weights)(tuple(sites), weights.readers, weights.paths, weights.whole)
    counts = allocate(graph, part, settings, batches, lambda done, total: None)
    made = prune(graph, part, settings, counts, batches)
    for site in sites:
        array = made.graph.initializers[site.name]
        groups = (array != 0).reshape(array.shape[0], -1, size, *array.shape[2:])
        assert (groups.sum(2) == keep).all()
        assert isinstance(site, GraphSite)


def test_values_that_stay_are_the_dense_ones_in_their_own_type() -> None:
    graph, _ = network()
    made = removed(settings_for("magnitude", 0.5, graph, comparison="layer"), None, graph)
    for site in weights_of(graph).sites:
        before, after = graph.initializers[site.name], made.graph.initializers[site.name]
        assert after.dtype == before.dtype
        assert np.array_equal(after[after != 0], before[after != 0])
        mask = stored_form(site, made.masks[site.name], before.shape).numpy()
        assert np.array_equal(mask, to_torch(after, "").numpy() != 0)
        assert np.abs(before[~mask]).max() <= np.abs(before[mask]).min()
