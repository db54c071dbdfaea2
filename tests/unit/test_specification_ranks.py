"""How low-rank weights are asked for: what is refused, with what advice, and what plans say."""

from __future__ import annotations

from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.anatomy.ranks import rank_budget, uniform_ranks, with_ranks
from tests.resolving import attempt, faults, inspections

LOW: dict[str, Any] = {"recipe": "svd-llm", "output": {"layout": "packaged"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return inspections(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("model", "changes", "pointer", "words"),
    [
        ("decoder", {"output": {}}, "/output/layout", ("no stock config", '"packaged"', "layer-drop")),
        ("decoder", {"output": {"layout": "padded"}}, "/output/layout", ("nothing to pad", '"packaged"')),
        (
            "decoder",
            {"output": {"layout": "packaged", "formats": ["safetensors", "gguf"]}},
            "/output/formats",
            ("llama.cpp",),
        ),
        ("encoder", {}, "/recipe", ("'bert'",)),
        ("decoder", {"options": {"update": ["refit"]}}, "/options/update", ("options.sequential false",)),
        ("decoder", {"options": {"rank_multiple": 64}}, "/options/rank_multiple", ("lower it",)),
        ("decoder", {"target": {"sparsity": 0.97}}, "/target/sparsity", ("Reachable: up to 0.9",)),
        ("decoder", {"target": {"parameters": 0.05}}, "/target/parameters", ("Reachable: ratios from 0.",)),
        ("decoder", {"target": {"macs": 10}}, "/target/macs", ("macs and more",)),
        ("decoder", {"target": {"layers": 1}}, "/target/layers", ("cannot aim at layers",)),
        ("decoder", {"calibration": None}, "/calibration", ("looks at activations",)),
        ("decoder", {"options": {"criterion": "whitning"}}, "/options/criterion", ("'whitening'",)),
        ("decoder", {"recipe": "cospadi", "target": {"macs": 0.8}}, "/target/macs", ("cannot aim at macs",)),
        (
            "decoder",
            {"options": {"atoms_per_entry": 2}, "target": {"bytes": 0.8}},
            "/target/bytes",
            ("aim at sparsity or parameters",),
        ),
        (
            "decoder",
            {"recipe": "cospadi", "options": {"allocation": "energy"}},
            "/options/allocation",
            ("write 'uniform'",),
        ),
        (
            "decoder",
            {"recipe": "cospadi", "options": {"update": ["refit"], "sequential": False}},
            "/options/update",
            ("fill the zeros",),
        ),
        ("decoder", {"recipe": "fwsvd", "calibration": None}, "/calibration", ("looks at activations",)),
    ],
)
def test_what_is_refused(
    model: str,
    changes: dict[str, Any],
    pointer: str,
    words: tuple[str, ...],
    models: dict[str, Inspection],
) -> None:
    found = {fault.pointer: fault for fault in faults(models[model], **{**LOW, **changes})}
    assert pointer in found, found
    assert all(word in found[pointer].message for word in words), found[pointer].message


def test_sparse_codes_store_what_the_plan_says(models: dict[str, Inspection]) -> None:
    """By brute force: the most atoms of every weight whose elements fit into the same share of each."""
    inspection = models["decoder"]
    for atoms, multiple in ((2, 1), (3, 2)):
        options = {"atoms_per_entry": atoms, "rank_multiple": multiple}
        spec = attempt(inspection, **{**LOW, "recipe": "cospadi"}, target={"sparsity": 0.4}, options=options)
        budget = rank_budget(spec, inspection)
        ranks = uniform_ranks(budget)
        elements = {
            site.name: ranks[site.name] * site.shape[1] + ranks[site.name] // atoms * site.shape[0]
            for site in budget.sites
        }
        assert all(rank % atoms == rank % multiple == 0 for rank in ranks.values())
        assert sum(elements.values()) == budget.stored(ranks) <= budget.total
        assert all(elements[site.name] < site.size for site in budget.sites)
        left = with_ranks(inspection, ranks, atoms)
        assert left.parameters == inspection.parameters - budget.whole + budget.stored(ranks)
        made = plan(spec, inspection)
        masks = sum(site.shape[0] * -(-ranks[site.name] // 8) for site in budget.sites)
        dense = plan(attempt(inspection, **LOW, target={"sparsity": 0.4}), inspection)["dense"]
        saved = 4 * (budget.whole - budget.stored(ranks)) - masks
        assert made["pruned"]["bytes"] == dense["bytes"] - saved
        multiplied = sum(ranks[site.name] * sum(site.shape) - site.size for site in budget.sites)
        assert made["pruned"]["macs"] - dense["macs"] == multiplied * made["sequence_length"]


def test_what_needs_no_data_asks_for_none(models: dict[str, Inspection]) -> None:
    for changes in ({"recipe": "svd"}, {"options": {"criterion": "random"}}):
        assert attempt(models["decoder"], **{**LOW, "calibration": None, **changes}).calibration is None


def test_reachable_bounds_can_be_reached(models: dict[str, Inspection]) -> None:
    (fault,) = faults(models["decoder"], **LOW, target={"sparsity": 0.97})
    most = float(fault.message.split("up to ")[1].rstrip("."))
    attempt(models["decoder"], **LOW, target={"sparsity": most})
    (fault,) = faults(models["decoder"], **LOW, target={"parameters": 0.05})
    least = float(fault.message.split("ratios from ")[1].split(" on")[0])
    attempt(models["decoder"], **LOW, target={"parameters": least})
    faults(models["decoder"], **LOW, target={"parameters": round(least - 0.0002, 4)})


@pytest.mark.parametrize(
    "target", [{"sparsity": 0.3}, {"parameters": 0.8}, {"macs": 0.8}, {"bytes": 0.8}, {"parameters": 0.0}]
)
@pytest.mark.parametrize("model", ["decoder", "half", "tied", "odd"])
def test_plans_meet_the_target(model: str, target: dict[str, Any], models: dict[str, Inspection]) -> None:
    inspection = models[model]
    ((kind, value),) = target.items()
    if not value:
        value = inspection.parameters * 7 // 8
        target = {kind: value}
    spec = attempt(inspection, **LOW, target=target)
    made = plan(spec, inspection)
    ranks = uniform_ranks(rank_budget(spec, inspection))
    left = with_ranks(inspection, ranks)
    assert made["pruned"]["parameters"] == left.parameters
    # Every token multiplies with every element once.
    saved = inspection.parameters - left.parameters
    assert made["dense"]["macs"] - made["pruned"]["macs"] == made["sequence_length"] * saved
    assert sum(row["remove"] for row in made["cut"]["sites"]) == saved == made["cut"]["weights_removed"]
    if kind == "sparsity":
        assert made["cut"]["sparsity"] >= value
    elif isinstance(value, float):
        reached = left.bytes / inspection.bytes if kind == "bytes" else made["ratios"][kind]
        assert value - 0.1 < reached <= value
    else:
        assert value * 0.9 < left.parameters <= value


def test_a_plan_says_what_it_does_not_know(models: dict[str, Inspection]) -> None:
    spec = attempt(models["decoder"], **LOW, options={"allocation": "energy"})
    made = plan(spec, models["decoder"])
    assert {row["rank"] for row in made["cut"]["sites"]} == {None}
    assert "energy decides while running" in " ".join(made["notes"])


def test_what_can_be_factored_says_so(models: dict[str, Inspection]) -> None:
    assert "rank" in models["decoder"].granularities
    assert "rank" not in models["encoder"].granularities
    for name in ("svd", "svd-llm"):
        assert catalogue.load().recipes[name].granularities == ("rank",)
