"""Neurons of experts: scores against the stock model in float64, both layouts, experts without tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.anatomy import Inspection
from compression.anatomy.families import family_of
from compression.anatomy.structures import Group
from compression.block_pruning import KEPT, StructureSettings
from compression.checkpoint import Store
from compression.criteria.structures import structure_criteria
from compression.evaluation import stock
from compression.export.model import write_model
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.pruning import finished_files
from compression.structured import FEW_TOKENS, StructurePruner
from compression.surgery import CutSource, cuts_of
from tests.engine.expert_models import stock_model, tiny
from tests.engine.jobs import Recorder

QWEN = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
CASES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"num_hidden_layers": 2},
    "Qwen2MoeForCausalLM": {"num_hidden_layers": 2, **QWEN},
    "Qwen3MoeForCausalLM": {"num_hidden_layers": 2, "num_experts": 4},
}
WIDTHS = {"MixtralForCausalLM": 24, "Qwen2MoeForCausalLM": 16, "Qwen3MoeForCausalLM": 8}
LENGTHS = (30, 21, 26, 17)
TOKENS = torch.arange(3, 3 + 2 * 9).reshape(2, 9)


def _batches() -> list[dict[str, Tensor]]:
    """Two batches of sequences of several lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for lengths in (LENGTHS, LENGTHS[::-1]):
        tokens = torch.randint(3, 131, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        found.append({"input_ids": tokens.where(mask, 0), "attention_mask": mask.long()})
    return found


def _sequences() -> list[Tensor]:
    return [ids[mask.bool()] for batch in _batches() for ids, mask in zip(*batch.values(), strict=True)]


class Reference:
    """The stock model in float64, sequence by sequence without padding: what each expert is given and gives,
    and gradients of its weights."""

    def __init__(self, folder: Path) -> None:
        self.model = stock_model(folder, torch.float64)
        self.inputs: dict[tuple[int, int], list[np.ndarray]] = {}
        self.gradients: dict[str, list[np.ndarray]] = {}
        self.heights: dict[str, list[np.ndarray]] = {}
        self._looking = True
        for layer, block in enumerate(self.model.model.layers):
            block.mlp.experts.register_forward_pre_hook(self._note(layer))
        experts = {name: one for name, one in self.model.named_parameters() if ".experts." in name}
        for sequence in _sequences():
            loss = self.model(sequence[None], labels=sequence[None]).loss
            for name, found in zip(experts, torch.autograd.grad(loss, list(experts.values())), strict=True):
                self.gradients.setdefault(name, []).append(found.numpy())
            self._looking = False
            logits = self.model(sequence[None]).logits[0]
            slopes = torch.autograd.grad(logits.max(0).values.mean(), list(experts.values()))
            for name, found in zip(experts, slopes, strict=True):
                self.heights.setdefault(name, []).append(found.numpy())
            self._looking = True

    def _note(self, layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            if not self._looking:
                return
            hidden, taken = args[0].detach(), args[1]
            for expert in range(module.down_proj.shape[0]):
                rows = (taken == expert).any(1)
                self.inputs.setdefault((layer, expert), []).append(hidden[rows].numpy())

        return hook

    def weights(self, layer: int, expert: int) -> list[np.ndarray]:
        """gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]."""
        experts = self.model.model.layers[layer].mlp.experts
        gate, up = experts.gate_up_proj[expert].detach().chunk(2)
        return [gate.numpy(), up.numpy(), experts.down_proj[expert].detach().numpy()]

    def _pieces(
        self, known: Mapping[str, list[np.ndarray]], layer: int, expert: int
    ) -> list[list[np.ndarray]]:
        """The same of gradients, sequence by sequence."""
        place = f"model.layers.{layer}.mlp.experts."
        found = []
        for both, down in zip(known[f"{place}gate_up_proj"], known[f"{place}down_proj"], strict=True):
            gate, up = np.split(both[expert], 2)
            found.append([gate, up, down[expert]])
        return found

    def scores(self, criterion: str, layer: int, expert: int) -> np.ndarray:
        gate, up, down = self.weights(layer, expert)
        inputs = self.inputs[layer, expert]
        given = []
        for rows in inputs:
            first = rows @ gate.T
            given.append(first / (1 + np.exp(-first)) * (rows @ up.T))
        every, seen = np.concatenate(given), [one for one in given if len(one)]
        if criterion == "magnitude":
            return np.sqrt((gate**2).sum(1) + (up**2).sum(1) + (down**2).sum(0))
        if criterion == "input-magnitude":
            return np.abs(gate).sum(1) + np.abs(up).sum(1)
        if criterion == "wanda":
            norms = np.linalg.norm(np.concatenate(inputs), axis=0)
            own = np.abs(down).sum(0) * np.linalg.norm(every, axis=0)
            return (np.abs(gate) * norms).sum(1) + (np.abs(up) * norms).sum(1) + own
        if criterion == "activation-norm":
            return np.linalg.norm([np.abs(one).mean(0) for one in seen], axis=0)
        if criterion == "average-norm":
            return np.mean([np.linalg.norm(one, axis=0) for one in seen], axis=0)
        if criterion == "activation-variance":
            return every.var(0)
        if criterion == "fluctuation":
            return every.var(0) * (down**2).sum(0)
        if criterion == "cfsp":
            parts = [np.abs(gate), np.abs(up), np.abs(down).T]
            return sum((one / one.sum(0)).mean(1) for one in parts) * np.linalg.norm(every, axis=0)
        if criterion == "fisher":
            pieces = self._pieces(self.gradients, layer, expert)
            return np.square([(piece[2] * down).sum(0) for piece in pieces]).mean(0)
        known = self.heights if criterion == "output-saliency" else self.gradients
        means = [np.mean(one, axis=0) for one in zip(*self._pieces(known, layer, expert), strict=True)]
        products = [np.abs(gate * means[0]), np.abs(up * means[1]), np.abs(down * means[2]).T]
        return sum(one.sum(1) for one in products)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = "MixtralForCausalLM"
    return tiny(tmp_path_factory.mktemp("model") / "model", case, "apart", **CASES[case])


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def _pruner(folder: Path, store: Path, criterion: str, width: int, **settings: Any) -> StructurePruner:
    admission = admit_model(folder_sources(folder))
    inspection = Inspection.from_json(admission.inspection)
    family = family_of(admission.architecture)
    groups = family.groups(admission.config, WeightReader(folder).names(), ["neuron"])
    sites = {site.name: site for site in inspection.sites}
    chosen = StructureSettings(criterion, {"neuron": width}, **settings)

    def model() -> StreamedModel:
        return StreamedModel(folder, admission.config, admission.family)

    return StructurePruner(model, groups, sites, chosen, _batches(), Store(store, "key"), Recorder())


def _kept(pruner: StructurePruner) -> dict[str, list[int]]:
    found = {}
    for group in pruner.groups:
        tensors, _ = pruner.store.load(f"block-{group.layer:04d}")
        found[group.name] = tensors[group.name + KEPT].tolist()
    return found


def _written(pruner: StructurePruner, dense: Path, folder: Path, width: int) -> Path:
    admission = admit_model(folder_sources(dense))
    config = family_of(admission.architecture).resized(admission.config, {"neuron": width})
    files = list(finished_files(pruner.store, config["num_hidden_layers"]))
    write_model(folder, WeightReader(dense, files), config, dense, dtype=torch.float32)
    return folder


SCORED = [
    "magnitude", "input-magnitude", "wanda", "activation-norm", "average-norm", "activation-variance",
    "fluctuation", "cfsp", "fisher", "taylor", "output-saliency",
]  # fmt: skip


@pytest.mark.parametrize("criterion", SCORED)
def test_every_expert_keeps_its_best_neurons(
    criterion: str, folder: Path, reference: Reference, tmp_path: Path
) -> None:
    judges = {entry.name for entry in structure_criteria if "neuron" in entry.kinds}
    assert set(SCORED) == judges - {"random", "obs"}
    pruner = _pruner(folder, tmp_path, criterion, 24)
    facts = pruner.run()
    kept = _kept(pruner)
    assert len(kept) == len(facts) == 2 * 4
    for fact, group in zip(facts, pruner.groups, strict=True):
        assert group.expert is not None
        routed = sum(map(len, reference.inputs[group.layer, group.expert]))
        assert fact["routed_tokens"] == routed
        judge = criterion if routed >= FEW_TOKENS else "magnitude"
        scores = reference.scores(judge, group.layer, group.expert)
        assert kept[group.name] == sorted(np.argsort(scores)[::-1][:24].tolist()), group.name
    assert sum(fact["routed_tokens"] >= FEW_TOKENS for fact in facts) >= 6


def _without(model: Any, groups: list[Group], kept: Mapping[str, list[int]]) -> None:
    """Zeros in the stock model's own tensors in place of the neurons that go."""
    with torch.no_grad():
        for group in groups:
            gone = [unit for unit in range(group.count) if unit not in kept[group.name]]
            mlp = model.model.layers[group.layer].mlp
            if group.expert is None:
                mlp.shared_expert.down_proj.weight[:, gone] = 0
            else:
                mlp.experts.down_proj[group.expert][:, gone] = 0


@pytest.mark.parametrize("layout", ["apart", "fused"])
@pytest.mark.parametrize("case", CASES)
def test_removed_is_zeroed_in_the_stock_model(case: str, layout: str, tmp_path: Path) -> None:
    dense = tiny(tmp_path / "dense", case, layout, **CASES[case])
    pruner = _pruner(dense, tmp_path / "steps", "fluctuation", WIDTHS[case], sequential=True)
    pruner.run()
    small = _written(pruner, dense, tmp_path / "cut", WIDTHS[case])
    model, info = stock.load_with_info(small, "text-generation")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kept = _kept(pruner)
    assert len({tuple(units) for units in kept.values()}) > 1
    whole = stock_model(dense)
    with torch.no_grad():
        before = whole(TOKENS).logits
        _without(whole, pruner.groups, kept)
        found, wanted = model(TOKENS).logits, whole(TOKENS).logits
    assert (found - wanted).abs().max() <= 1e-5
    assert (found - before).abs().max() > 1e-3
    if case == "Qwen2MoeForCausalLM":
        assert {len(kept[f"neuron.{layer}.shared"]) for layer in range(2)} == {24}
        assert model.config.shared_expert_intermediate_size == 24


def test_both_layouts_lose_the_same(tmp_path: Path) -> None:
    case, found = "Qwen2MoeForCausalLM", {}
    for layout in ("apart", "fused"):
        dense = tiny(tmp_path / layout, case, layout, **CASES[case])
        pruner = _pruner(dense, tmp_path / f"{layout}-steps", "wanda", 16, update=("least-squares",))
        pruner.run()
        small = _written(pruner, dense, tmp_path / f"{layout}-cut", 16)
        found[layout] = (_kept(pruner), stock_model(small)(TOKENS).logits)
    assert found["apart"][0] == found["fused"][0]
    assert torch.equal(found["apart"][1], found["fused"][1])


def test_a_source_cuts_what_is_stored_together(tmp_path: Path) -> None:
    dense = tiny(tmp_path / "dense", "MixtralForCausalLM", "fused", num_hidden_layers=1)
    pruner = _pruner(dense, tmp_path / "steps", "magnitude", 24)
    pruner.run()
    reader, kept = WeightReader(dense), _kept(pruner)
    units = {name: torch.tensor(one) for name, one in kept.items()}
    found = CutSource(reader, cuts_of(pruner.groups, units))
    zeroed = CutSource(reader, cuts_of(pruner.groups, units), zeros=True)
    finished = {name: one for name, one in pruner.store.load("block-0000")[0].items() if KEPT not in name}
    assert sorted(name.rpartition(".")[2] for name in finished) == ["down_proj", "gate_up_proj"]
    for name, tensor in finished.items():
        assert found.shape(name) == tuple(tensor.shape)
        assert torch.equal(found.tensor(name), tensor)
        assert zeroed.shape(name) == tuple(zeroed.tensor(name).shape) == reader.shape(name)
        assert zeroed.tensor(name).count_nonzero() == tensor.count_nonzero()


def test_least_squares_are_those_of_the_experts_own_tokens(
    folder: Path, reference: Reference, tmp_path: Path
) -> None:
    parameters = {"damping": 1e-4}
    pruner = _pruner(folder, tmp_path, "magnitude", 24, update=("least-squares",), parameters=parameters)
    facts, kept = pruner.run(), _kept(pruner)
    for fact, group in zip(facts, pruner.groups, strict=True):
        assert group.expert is not None
        gate, up, down = reference.weights(group.layer, group.expert)
        tensors, _ = pruner.store.load(f"block-{group.layer:04d}")
        units = kept[group.name]
        found = tensors[group.output].double().numpy()
        if fact["routed_tokens"] < FEW_TOKENS:
            assert np.array_equal(found, down[:, units].astype(np.float32))
            continue
        rows = np.concatenate(reference.inputs[group.layer, group.expert])
        first = rows @ gate.T
        given = first / (1 + np.exp(-first)) * (rows @ up.T)
        damping = np.sqrt(1e-4 * (given**2).sum(0).mean())
        # Rows that draw towards the dense weight stand for the damping.
        left = np.vstack([given[:, units], damping * np.eye(len(units))])
        right = np.vstack([given @ down.T, damping * down[:, units].T])
        wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
        assert np.allclose(found, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("criterion", ["wanda", "fluctuation", "taylor", "obs", "random"])
def test_an_expert_without_tokens_is_judged_by_its_weights(criterion: str, tmp_path: Path) -> None:
    """With one expert a token, one whose row of the router is the mean of two others is never the best."""
    case, unused = "MixtralForCausalLM-tied", 4
    dense = tiny(tmp_path / "dense", case, "apart", num_hidden_layers=2)
    tensors = load_file(dense / "model.safetensors")
    for name, rows in tensors.items():
        if name.endswith(".gate.weight"):
            rows[unused] = (rows[0] + rows[1]) / 2
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    update = ("least-squares", "bias-compensation")
    pruner = _pruner(dense, tmp_path / "steps", criterion, 24, update=update, sequential=True)
    facts = {fact["name"]: fact for fact in pruner.run()}
    kept, whole = _kept(pruner), _pruner(dense, tmp_path / "again", "magnitude", 24)
    whole.run()
    for group in pruner.groups:
        fact = facts[group.output]
        assert fact["weight_error"] > 0
        tensors, _ = pruner.store.load(f"block-{group.layer:04d}")
        assert bool(torch.isfinite(tensors[group.output]).all())
        if group.expert == unused:
            assert fact["routed_tokens"] == 0
            assert fact["reconstruction_error"] is None
            stored = WeightReader(dense).tensor(group.output)
            assert torch.equal(tensors[group.output], stored[:, kept[group.name]])
            if criterion != "random" and structure_criteria[criterion].needs:
                assert kept[group.name] == _kept(whole)[group.name]
