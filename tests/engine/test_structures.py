"""Scores of neurons and heads, and what happens to the rest, against the stock model in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from compression.anatomy import Inspection
from compression.anatomy.families import family_of
from compression.block_pruning import KEPT, StructureSettings
from compression.checkpoint import Store
from compression.criteria.base import ScoresNotFinite
from compression.criteria.structures import structure_criteria
from compression.criteria.units import Piece, Units, best, check_unit_scores
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.structured import StructurePruner
from compression.updates.structures import structure_updates
from compression.updates.units import StructureCut, StructureTask
from tests.engine.jobs import Recorder
from tests.tiny_families import tiny_family

CASE = "Qwen3ForCausalLM"
LAYERS, HEADS, GROUPS, SIZE, FFN = 3, 8, 4, 16, 56
WIDTHS = {"neuron": 23, "head": 2}
LENGTHS = (9, 5, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
    return tiny_family(tmp_path_factory.mktemp("model") / "model", CASE, **changes)


def _batches() -> list[dict[str, Tensor]]:
    """Two batches of sequences of several lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for lengths in (LENGTHS, LENGTHS[::-1]):
        tokens = torch.randint(3, 131, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        found.append({"input_ids": tokens.where(mask, 0), "attention_mask": mask.long()})
    return found


class Reference:
    """The stock model in float64, sequence by sequence without padding."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        self.weights = {
            name.removesuffix(".weight"): parameter for name, parameter in self.model.named_parameters()
        }
        self.inputs: dict[str, list[np.ndarray]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._note(name))
        self.gradients: dict[str, Tensor] = {}
        self.slopes: dict[tuple[int, str], list[np.ndarray]] = {}
        self.output_gradients: dict[str, Tensor] = {}
        sequences = [
            ids[mask.bool()] for batch in _batches() for ids, mask in zip(*batch.values(), strict=True)
        ]
        for sequence in sequences:
            self.model.zero_grad()
            self.model(sequence[None], labels=sequence[None]).loss.backward()
            for name, parameter in self.weights.items():
                assert parameter.grad is not None
                total = self.gradients.get(name, torch.zeros_like(parameter))
                self.gradients[name] = total + parameter.grad / len(sequences)
            self._slopes(sequence)
            # The highest logit of every token of the vocabulary, one by one.
            logits = self.model(sequence[None]).logits[0]
            highest = torch.stack([column.sort().values[-1] for column in logits.T])
            found = torch.autograd.grad(highest.sum() / len(highest), list(self.weights.values()))
            for name, slope in zip(self.weights, found, strict=True):
                total = self.output_gradients.get(name, torch.zeros_like(slope))
                self.output_gradients[name] = total + slope / len(sequences)

    def _slopes(self, sequence: Tensor) -> None:
        """Slopes of the loss of a sequence along factors that all outputs of each unit are multiplied
        with."""
        masks, handles = {}, []
        for layer, block in enumerate(self.model.model.layers):
            for kind, count, reader in (
                ("neuron", FFN, block.mlp.down_proj),
                ("head", GROUPS, block.self_attn.o_proj),
            ):
                masks[layer, kind] = mask = torch.ones(count, dtype=torch.float64, requires_grad=True)
                handles.append(
                    reader.register_forward_pre_hook(
                        lambda module, args, mask=mask: (
                            args[0] * mask.repeat_interleave(args[0].shape[-1] // len(mask)),
                        )
                    )
                )
        loss = self.model(sequence[None], labels=sequence[None]).loss
        for place, slope in zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True):
            self.slopes.setdefault(place, []).append(slope.numpy())
        for handle in handles:
            handle.remove()

    def _note(self, name: str) -> Any:
        return lambda module, args: self.inputs.setdefault(name, []).append(args[0][0].detach().numpy())

    def weight(self, name: str) -> np.ndarray:
        return self.weights[name].detach().numpy()

    def unit(self, layer: int, kind: str, number: int) -> list[tuple[str, Any]]:
        """(module, index) of everything a unit owns."""
        block = f"model.layers.{layer}"
        if kind == "neuron":
            parts = [("gate_proj", number), ("up_proj", number), ("down_proj", (slice(None), number))]
            return [(f"{block}.mlp.{name}", index) for name, index in parts]
        each = HEADS // GROUPS * SIZE
        queries = slice(number * each, (number + 1) * each)
        keys = slice(number * SIZE, (number + 1) * SIZE)
        parts = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys), ("o_proj", (slice(None), queries))]
        return [(f"{block}.self_attn.{name}", index) for name, index in parts]

    def score(self, criterion: str, layer: int, kind: str, number: int) -> float:
        if criterion == "fisher":
            return float(np.square([slopes[number] for slopes in self.slopes[layer, kind]]).mean())
        owned = self.unit(layer, kind, number)
        reader, (_, columns) = owned[-1]
        outputs = [sequence[:, columns].reshape(len(sequence), -1) for sequence in self.inputs[reader]]
        given = np.concatenate(outputs)
        down = self.weight(reader)[:, columns].reshape(len(self.weight(reader)), -1)
        if criterion == "activation-norm":
            return float(np.linalg.norm([np.linalg.norm(one, axis=1).mean() for one in outputs]))
        if criterion == "average-norm":
            return float(np.mean([np.sqrt((one**2).sum()) for one in outputs]))
        if criterion == "activation-variance":
            return float(given.var(axis=0).sum())
        if criterion == "fluctuation":
            return float((given.var(axis=0) * (down**2).sum(axis=0)).sum())
        total = 0.0
        for name, index in owned:
            weight = self.weight(name)
            if criterion == "magnitude":
                total += float((weight[index] ** 2).sum())
                bias = f"{name}.bias"
                if not name.endswith(("o_proj", "down_proj")) and bias in self.weights:
                    total += float((self.weights[bias].detach().numpy()[index] ** 2).sum())
            elif criterion == "input-magnitude":
                if not name.endswith(("o_proj", "down_proj")):
                    shared = HEADS // GROUPS if name.endswith(("k_proj", "v_proj")) else 1
                    total += float(np.abs(weight[index]).sum()) * shared
            elif criterion == "output-saliency":
                total += float(np.abs(weight * self.output_gradients[name].numpy())[index].sum())
            elif criterion == "wanda":
                norms = np.linalg.norm(np.concatenate(self.inputs[name]), axis=0)
                total += float((np.abs(weight) * norms)[index].sum())
            else:
                product = (weight * self.gradients[name].numpy())[index]
                total += float(abs(product.sum()) if criterion == "vector" else np.abs(product).sum())
        return total


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def _pruner(folder: Path, store: Path, criterion: str, **settings: Any) -> StructurePruner:
    admission = admit_model(folder_sources(folder))
    inspection = Inspection.from_json(admission.inspection)
    family = family_of(admission.architecture)

    def model() -> StreamedModel:
        return StreamedModel(folder, admission.config, admission.family)

    names = model().reader.names()
    groups = family.groups(admission.config, names, ["neuron", "head"])
    sites = {site.name: site for site in inspection.sites}
    chosen = StructureSettings(criterion, WIDTHS, **settings)
    return StructurePruner(model, groups, sites, chosen, _batches(), Store(store, "key"), Recorder())


REFERENCES = {
    "magnitude": {}, "wanda": {}, "activation-norm": {}, "activation-variance": {}, "fluctuation": {},
    "taylor": {"taylor_form": "element"}, "vector": {"taylor_form": "vector"}, "fisher": {},
    "average-norm": {}, "input-magnitude": {}, "output-saliency": {},
}  # fmt: skip


@pytest.mark.parametrize("criterion", REFERENCES)
def test_every_layer_keeps_its_best_units(
    criterion: str, folder: Path, reference: Reference, tmp_path: Path
) -> None:
    name = "taylor" if criterion == "vector" else criterion
    pruner = _pruner(folder, tmp_path, name, parameters=REFERENCES[criterion])
    pruner.run()
    judges = {entry.name for entry in structure_criteria if "neuron" in entry.kinds}
    assert set(REFERENCES) - {"vector"} == judges - {"random", "obs", "cfsp"}
    for layer in range(LAYERS):
        tensors, _ = pruner.store.load(f"block-{layer:04d}")
        for kind, count in (("neuron", FFN), ("head", GROUPS)):
            scores = [reference.score(criterion, layer, kind, number) for number in range(count)]
            wanted = sorted(np.argsort(scores)[::-1][: WIDTHS[kind]].tolist())
            assert tensors[f"{kind}.{layer}{KEPT}"].tolist() == wanted


def test_the_same_units_every_time_and_others_for_another_seed(folder: Path, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        pruner = _pruner(folder, tmp_path / str(number), "random", seed=seed)
        pruner.run()
        found.append(pruner.store.load("block-0001")[0][f"neuron.1{KEPT}"].tolist())
    assert found[0] == found[1] != found[2]


def test_least_squares_lower_every_layers_error(folder: Path, tmp_path: Path) -> None:
    """On the calibration data itself, by the facts of both jobs."""
    errors = []
    for name, update in (("plain", ()), ("solved", ("least-squares",))):
        pruner = _pruner(folder, tmp_path / name, "magnitude", update=update, parameters={"damping": 1e-6})
        errors.append([fact["reconstruction_error"] for fact in pruner.run()])
    assert len(errors[0]) == 2 * LAYERS
    assert all(solved < 0.9 * plain for plain, solved in zip(*errors, strict=True))


def _task(seed: int = 0, bias: bool = True) -> tuple[StructureTask, Tensor]:
    """A weight [5, 12] that keeps 7 inputs, and its inputs float64 [200, 12], correlated and off centre."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64) @ mix + 2
    dense = torch.randn(5, 12, generator=generator)
    kept = torch.tensor([0, 2, 3, 5, 8, 9, 11])
    hessian = (inputs.T @ inputs).to(torch.float32)
    return StructureTask(dense, kept, "site", bias, inputs.mean(0), hessian), inputs


def test_least_squares_are_the_best_there_is() -> None:
    task, inputs = _task()
    update = type(structure_updates["least-squares"])(damping=1e-9)  # type: ignore[call-arg]
    found = update.apply(task, StructureCut(task.dense[:, task.kept]))
    wanted, *_ = np.linalg.lstsq(
        inputs[:, task.kept].numpy(), (inputs @ task.dense.double().T).numpy(), rcond=None
    )
    assert np.allclose(found.weight.numpy(), wanted.T, atol=2e-3)


def test_damping_draws_towards_the_dense_weight() -> None:
    task, _ = _task()
    kept = task.dense[:, task.kept]
    apart = []
    for damping in (1e-6, 0.1, 10.0):
        update = type(structure_updates["least-squares"])(damping=damping)  # type: ignore[call-arg]
        apart.append(float((update.apply(task, StructureCut(kept)).weight - kept).norm()))
    assert apart[0] > apart[1] > apart[2]


def test_bias_compensation_keeps_the_mean_of_every_output() -> None:
    task, inputs = _task()
    update = structure_updates["bias-compensation"]
    weight = task.dense[:, task.kept] * 0.9
    found = update.apply(task, StructureCut(weight))
    assert found.bias is not None
    before = (inputs @ task.dense.double().T).mean(0)
    after = (inputs[:, task.kept] @ weight.double().T).mean(0) + found.bias
    assert torch.allclose(before, after, atol=1e-4)
    assert update.apply(_task(bias=False)[0], StructureCut(weight)).bias is None


def test_ties_and_bad_scores() -> None:
    assert best(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [0, 1]
    with pytest.raises(ScoresNotFinite, match="unit 1 of neuron"):
        check_unit_scores(torch.tensor([1.0, float("nan")]), "neuron.0")


@pytest.mark.parametrize(
    "name",
    [
        "activation-norm",
        "average-norm",
        "fluctuation",
        "activation-variance",
        "wanda",
        "taylor",
        "obs",
        "fisher",
        "output-saliency",
    ],
)
def test_missing_statistics_are_said(name: str) -> None:
    units = Units("neuron.0", 3, [Piece(torch.ones(3, 1, 4), column=True)])
    with pytest.raises(ValueError, match="need"):
        structure_criteria[name].score(units, torch.Generator())
