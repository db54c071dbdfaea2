"""What experts are worth, against the stock model in float64, sequence by sequence without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.criteria.base import ActivationsNotFinite
from compression.criteria.structures import structure_criteria
from compression.criteria.structures.router_similarity import clustered
from compression.criteria.units import Piece, Units
from compression.expert_use import ExpertUse
from tests.engine.expert_models import Cut, Unrouted, sequences, stock_model, tiny

LAYERS, EXPERTS, TOP, KEEP = 3, 8, 2, 5


@pytest.fixture(scope="module", params=["apart", "fused"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "model", "Qwen3MoeForCausalLM", request.param)


class Reference:
    """What the routers and experts of the stock model see and give in every layer, in float64."""

    def __init__(
        self, folder: Path, kept: dict[int, list[int]] | None = None, replaced: dict[int, Any] | None = None
    ) -> None:
        self.model = stock_model(folder, torch.float64).requires_grad_(False)
        for layer, module in (replaced or {}).items():
            self.model.model.layers[layer].mlp = module
        self.hidden: list[list[Tensor]] = [[] for _ in range(LAYERS)]
        for layer in range(LAYERS):
            self.model.model.layers[layer].mlp.register_forward_pre_hook(self._note(layer))
        with torch.no_grad(), Unrouted(self.model, kept or {}):
            for sequence in sequences():
                self.model(sequence[None])

    def _note(self, layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, args: self.hidden[layer].append(args[0][0])

    def inputs(self, layer: int) -> Tensor:
        return torch.cat(self.hidden[layer])

    def given(self, layer: int, kept: Iterable[int] | None = None) -> Tensor:
        """What the routed experts of a layer give if only some are there."""
        mlp = self.model.model.layers[layer].mlp
        stay = range(EXPERTS) if kept is None else kept
        with torch.no_grad(), Unrouted(self.model, {layer: stay}):
            _, weights, taken = mlp.gate(self.inputs(layer))
            found: Tensor = mlp.experts(self.inputs(layer), taken, weights)
        return found

    def lost(self, layer: int, kept: Iterable[int]) -> float:
        whole = self.given(layer)
        return float((whole - self.given(layer, kept)).square().sum() / whole.square().sum())

    def tokens(self, layer: int) -> list[list[tuple[float, float, set[int]]]]:
        """Of every expert, token by token: router's weight, norm of its output, all experts of the token."""
        mlp = self.model.model.layers[layer].mlp
        found: list[list[tuple[float, float, set[int]]]] = [[] for _ in range(EXPERTS)]
        for x in self.inputs(layer):
            logits = (mlp.gate.weight @ x).numpy()
            best = np.argsort(-logits)[:TOP]
            shares = np.exp(logits[best]) / np.exp(logits[best]).sum()
            for expert, share in zip(best, shares, strict=True):
                gate, up = mlp.experts.gate_up_proj[expert].chunk(2)
                down = mlp.experts.down_proj[expert]
                output = down @ (torch.nn.functional.silu(gate @ x) * (up @ x))
                found[expert].append((float(share), float(output.norm()), set(best.tolist())))
        return found

    def scores(self, criterion: str, layer: int) -> list[float]:
        tokens = self.tokens(layer)
        if criterion == "expert-frequency":
            return [len(mine) / len(self.inputs(layer)) for mine in tokens]
        if criterion == "router-mass":
            return [sum(share for share, _, _ in mine) for mine in tokens]
        if criterion == "expert-output":
            return [float(np.mean([share * norm for share, norm, _ in mine] or [0.0])) for mine in tokens]
        parts = self.parts(layer)
        return [sum(float(part[expert].square().sum()) for part in parts) for expert in range(EXPERTS)]

    def parts(self, layer: int) -> tuple[Tensor, ...]:
        """All that the experts of a layer own, expert by expert."""
        mlp = self.model.model.layers[layer].mlp
        return mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def _best(scores: list[float], keep: int = KEEP) -> list[int]:
    """Of equals, the first."""
    return sorted(sorted(range(len(scores)), key=lambda one: -scores[one])[:keep])


@pytest.mark.parametrize("criterion", ["expert-frequency", "router-mass", "expert-output", "magnitude"])
def test_every_layer_keeps_its_best_experts(
    criterion: str, folder: Path, reference: Reference, tmp_path: Path
) -> None:
    cut = Cut(folder, tmp_path, criterion, KEEP)
    for layer in range(LAYERS):
        assert cut.kept[layer] == _best(reference.scores(criterion, layer))
        fact = cut.facts[layer]
        assert fact["reconstruction_error"] == pytest.approx(reference.lost(layer, cut.kept[layer]), rel=1e-4)
        squares = reference.scores("magnitude", layer)
        gone = sum(square for expert, square in enumerate(squares) if expert not in cut.kept[layer])
        assert fact["weight_error"] == pytest.approx((gone / sum(squares)) ** 0.5, rel=1e-5)
        assert (fact["units"], fact["kept"]) == (EXPERTS, KEEP)


def test_statistics_are_those_of_the_stock_model(
    folder: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExpertUse] = []
    criterion = type(structure_criteria["expert-output"])
    score = criterion.score

    def note(self: Any, units: Units, generator: torch.Generator) -> Tensor:
        seen.append(units.used())
        return score(self, units, generator)

    monkeypatch.setattr(criterion, "score", note)
    Cut(folder, tmp_path, "expert-output", KEEP)
    for layer, use in enumerate(seen):
        tokens = reference.tokens(layer)
        assert use.tokens == len(reference.inputs(layer)) == 52
        assert use.counts.tolist() == [len(mine) for mine in tokens]
        together = [
            [sum(b in taken for _, _, taken in tokens[a]) for b in range(EXPERTS)] for a in range(EXPERTS)
        ]
        assert use.together.tolist() == together
        assert use.weights.tolist() == pytest.approx(reference.scores("router-mass", layer), rel=1e-5)
        norms = [sum(share * norm for share, norm, _ in mine) for mine in tokens]
        assert use.norms.tolist() == pytest.approx(norms, rel=1e-5)


def test_later_layers_see_what_the_smaller_ones_give(folder: Path, tmp_path: Path) -> None:
    cut = Cut(folder, tmp_path, "router-mass", KEEP, sequential=True)
    for layer in range(LAYERS):
        before = Reference(folder, dict(enumerate(cut.kept[:layer])))
        assert cut.kept[layer] == _best(before.scores("router-mass", layer))
        assert cut.facts[layer]["reconstruction_error"] == pytest.approx(
            before.lost(layer, cut.kept[layer]), rel=1e-4
        )


def test_the_best_set_of_all(folder: Path, reference: Reference, tmp_path: Path) -> None:
    cut = Cut(folder, tmp_path, "expert-subset", KEEP)
    for layer in range(LAYERS):
        errors = {kept: reference.lost(layer, kept) for kept in combinations(range(EXPERTS), KEEP)}
        assert tuple(cut.kept[layer]) == min(errors, key=errors.__getitem__)


def test_many_experts_go_one_by_one(folder: Path, reference: Reference, tmp_path: Path) -> None:
    cut = Cut(folder, tmp_path, "expert-subset", KEEP, parameters={"subset_limit": 55})
    for layer in range(LAYERS):
        stay = set(range(EXPERTS))
        while len(stay) > KEEP:
            stay.remove(min(sorted(stay), key=lambda one: reference.lost(layer, stay - {one})))
        assert cut.kept[layer] == sorted(stay)


def _by_hand(distances: np.ndarray, count: int) -> list[list[int]]:
    """Complete linkage, every distance between clusters found anew."""
    clusters = [{number} for number in range(len(distances))]
    while len(clusters) > count:
        far = {
            (a, b): max(distances[i, j] for i in clusters[a] for j in clusters[b])
            for a, b in combinations(range(len(clusters)), 2)
        }
        a, b = min(far, key=far.__getitem__)
        clusters[a] |= clusters.pop(b)
    return sorted(sorted(cluster) for cluster in clusters)


def _clusters(reference: Reference, layer: int, weight: float) -> list[tuple[int, list[int]]]:
    """The expert that stays of each cluster, and its members."""
    rows = reference.parts(layer)[0].numpy()
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    tokens = reference.tokens(layer)
    common = np.array([[sum(b in taken for _, _, taken in mine) for b in range(EXPERTS)] for mine in tokens])
    pairs = list(combinations(range(EXPERTS), 2))
    distances = apart / np.mean([apart[pair] for pair in pairs])
    distances -= weight * common / np.mean([common[pair] for pair in pairs])
    found = []
    for members in _by_hand(distances, KEEP):
        owned = {one: torch.cat([part[one].flatten() for part in reference.parts(layer)]) for one in members}
        mean = torch.stack(list(owned.values())).mean(0)
        apart_from_mean = {one: float((values - mean).norm()) for one, values in owned.items()}
        found.append((min(members, key=apart_from_mean.__getitem__), members))
    return sorted(found)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_one_expert_of_each_cluster(
    weight: float, folder: Path, reference: Reference, tmp_path: Path
) -> None:
    cut = Cut(folder, tmp_path, "router-similarity", KEEP, parameters={"coactivation_weight": weight})
    for layer in range(LAYERS):
        assert cut.kept[layer] == [stays for stays, _ in _clusters(reference, layer, weight)]


@pytest.mark.parametrize("sequential", [False, True])
def test_clusters_become_their_mean(sequential: bool, folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"update": ("expert-merge",), "sequential": sequential}
    cut = Cut(folder, tmp_path, "router-similarity", KEEP, **settings)
    small = stock_model(cut.write(), torch.float64).requires_grad_(False)
    for layer in range(LAYERS):
        earlier = {one: small.model.layers[one].mlp for one in range(layer if sequential else 0)}
        reference = Reference(folder, replaced=earlier)
        shares = reference.scores("router-mass", layer)
        clusters = _clusters(reference, layer, 1.0)
        assert cut.kept[layer] == [stays for stays, _ in clusters]
        mlp = small.model.layers[layer].mlp
        found = (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj)
        lost = total = 0.0
        for part, merged in zip(reference.parts(layer), found, strict=True):
            for place, (stays, members) in enumerate(clusters):
                used = {one: shares[one] for one in members}
                if not any(used.values()):
                    used = dict.fromkeys(members, 1.0)
                mean = sum(share * part[one] for one, share in used.items()) / sum(used.values())
                assert torch.allclose(merged[place], mean, rtol=0, atol=1e-6)
                lost += float((merged[place] - part[stays]).square().sum())
            lost += float(part.square().sum() - part[cut.kept[layer]].square().sum())
            total += float(part.square().sum())
        assert cut.facts[layer]["weight_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
        assert cut.facts[layer]["reconstruction_error"] is None


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_many(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(20, 20))
    distances = values + values.T
    for count in (1, 7, 19, 20):
        assert clustered(torch.from_numpy(distances), count) == _by_hand(distances, count)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_what_needs_no_data_takes_none(criterion: str, folder: Path, tmp_path: Path) -> None:
    cuts = [Cut(folder, tmp_path / str(given), criterion, KEEP, calibrated=given) for given in (False, True)]
    assert cuts[0].kept == cuts[1].kept
    assert all(fact["reconstruction_error"] is None for fact in cuts[0].facts)


def test_random_experts_are_those_of_the_seed(folder: Path, tmp_path: Path) -> None:
    kept = [
        Cut(folder, tmp_path / str(number), "random", KEEP, seed=seed).kept
        for number, seed in enumerate((0, 0, 1))
    ]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    "name", ["expert-frequency", "router-mass", "expert-output", "expert-subset", "router-similarity"]
)
def test_missing_statistics_are_said(name: str) -> None:
    units = Units("expert.0", 3, [Piece(torch.ones(3, 1, 4))], keep=2, router=torch.eye(3))
    with pytest.raises(ValueError, match="need"):
        structure_criteria[name].score(units, torch.Generator())


def test_an_expert_that_is_never_used_is_worth_nothing(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "MixtralForCausalLM-tied", "apart")
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith(".gate.weight"):
            # Of two opposite scores one is positive, so what always scores zero never wins.
            value[0], value[2:] = -value[1], 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    cut = Cut(folder, tmp_path, "expert-output", 2)
    assert cut.kept == [[0, 1]] * LAYERS
    assert all(abs(fact["reconstruction_error"]) < 1e-6 for fact in cut.facts)


@pytest.mark.parametrize("criterion", ["expert-frequency", "expert-output", "expert-subset"])
def test_experts_that_overflow_are_named(criterion: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "MixtralForCausalLM", "apart")
    tensors = load_file(folder / "model.safetensors")
    for expert in range(4):
        tensors[f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight"].fill_(3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ActivationsNotFinite, match=r"of model\.layers\.1\.block_sparse_moe\.gate\.weight"):
        Cut(folder, tmp_path, criterion, 3)
