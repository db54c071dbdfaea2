"""Models whose layers are not alike: heads that the layers of a stack share, and widths of stages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from compression.anatomy import Inspection, inspect
from compression.anatomy.families import family_of
from compression.anatomy.widths import resized
from compression.block_pruning import KEPT, StructureSettings
from compression.checkpoint import Store
from compression.evaluation.types import IGNORED
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.structured import StructurePruner
from tests.engine.jobs import Recorder
from tests.engine.test_encoder_decoder import batches
from tests.engine.test_surgery import Surgery
from tests.tiny_families import tiny_family

T5 = "T5ForConditionalGeneration-unscaled"
HEADS, SIZE = 4, 16
TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"
LAYERS = {"encoder": 3, "decoder": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("model") / "model", T5)


def _pruner(folder: Path, store: Path, criterion: str, **settings: Any) -> StructurePruner:
    admission = admit_model(folder_sources(folder))
    sites = {site.name: site for site in Inspection.from_json(admission.inspection).sites}
    family, names = family_of(admission.architecture), WeightReader(folder).names()
    groups = family.groups(admission.config, names, ["neuron", "head"])
    chosen = StructureSettings(criterion, {"neuron": 24, "head": 2}, **settings)

    def model() -> StreamedModel:
        return StreamedModel(folder, admission.config, admission.family)

    return StructurePruner(model, groups, sites, chosen, batches(), Store(store, "key"), Recorder())


def _kept(pruner: StructurePruner) -> dict[str, list[int]]:
    return {
        group.name: pruner.store.load(f"block-{group.layer:04d}")[0][group.name + KEPT].tolist()
        for group in pruner.groups
    }


def _best(scores: np.ndarray, keep: int) -> list[int]:
    return sorted(np.argsort(-scores, kind="stable")[:keep].tolist())


def _magnitudes(reader: WeightReader, attention: str, table: str | None) -> np.ndarray:
    """2-norm of everything that each head has."""
    squares = np.zeros(HEADS)
    for name in "qkvo":
        weight = reader.tensor(f"{attention}.{name}.weight").double().numpy()
        weight = weight.T if name == "o" else weight
        squares += (weight.reshape(HEADS, -1) ** 2).sum(1)
    if table is not None:
        squares += (reader.tensor(table).double().numpy() ** 2).sum(0)
    return np.sqrt(squares)


def test_the_layers_of_a_stack_keep_the_same_heads(folder: Path, tmp_path: Path) -> None:
    pruner, reader = _pruner(folder, tmp_path, "magnitude"), WeightReader(folder)
    pruner.run()
    kept, first = _kept(pruner), 0
    for stack, layers in LAYERS.items():
        total = np.zeros(HEADS)
        for layer in range(layers):
            table = f"{stack}.block.0.{TABLE}" if layer == 0 else None
            scores = _magnitudes(reader, f"{stack}.block.{layer}.layer.0.SelfAttention", table)
            total += scores / scores.mean()
        wanted = _best(total, 2)
        assert [kept[f"head.{first + layer}"] for layer in range(layers)] == [wanted] * layers
        tensors, _ = pruner.store.load(f"block-{first:04d}")
        dense = reader.tensor(f"{stack}.block.0.{TABLE}")
        assert torch.equal(tensors[f"{stack}.block.0.{TABLE}"], dense[:, wanted])
        first += layers
    for layer in range(LAYERS["decoder"]):
        scores = _magnitudes(reader, f"decoder.block.{layer}.layer.1.EncDecAttention", None)
        assert kept[f"head.{3 + layer}.cross"] == _best(scores, 2)
    units = pruner.units()
    assert [len(units[name]) for name in ("neuron", "head", "head.cross")] == [5, 5, 2]


def _given(folder: Path) -> dict[str, list[np.ndarray]]:
    """What the stock model in float64 gives the weights that read units, sequence by sequence."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    found: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if name.endswith((".o", ".wo")):
            module.register_forward_pre_hook(
                lambda module, args, name=name: found.setdefault(name, []).append(args[0][0].numpy())
            )
    for batch in batches():
        for row in range(len(batch["input_ids"])):
            mask, wanted = batch["attention_mask"][row].bool(), batch["labels"][row] != IGNORED
            with torch.no_grad():
                model(
                    input_ids=batch["input_ids"][row][mask][None],
                    decoder_input_ids=batch["decoder_input_ids"][row][wanted][None],
                )
    return found


def test_units_of_both_stacks_are_scored_by_what_they_give(folder: Path, tmp_path: Path) -> None:
    pruner = _pruner(folder, tmp_path, "activation-norm")
    pruner.run()
    kept, given = _kept(pruner), _given(folder)

    def norms(name: str, count: int) -> np.ndarray:
        means = [np.linalg.norm(one.reshape(len(one), count, -1), axis=2).mean(0) for one in given[name]]
        return np.linalg.norm(means, axis=0)

    first = 0
    for stack, layers in LAYERS.items():
        total = np.zeros(HEADS)
        for layer in range(layers):
            block = f"{stack}.block.{layer}.layer"
            place = 1 if stack == "encoder" else 2
            scores = norms(f"{block}.{place}.DenseReluDense.wo", 56)
            assert kept[f"neuron.{first + layer}"] == _best(scores, 24)
            scores = norms(f"{block}.0.SelfAttention.o", HEADS)
            total += scores / scores.mean()
            if stack == "decoder":
                scores = norms(f"{block}.1.EncDecAttention.o", HEADS)
                assert kept[f"head.{first + layer}.cross"] == _best(scores, 2)
        assert kept[f"head.{first}"] == _best(total, 2)
        first += layers


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "obs", "fluctuation"])
def test_it_is_the_same_every_time_whatever_judges(criterion: str, folder: Path, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        pruner = _pruner(
            folder, tmp_path / str(number), criterion, sequential=True, update=("least-squares",),
        )  # fmt: skip
        facts = pruner.run()
        assert len(facts) == 5 * 2 + 2
        assert all(np.isfinite(fact["weight_error"]) for fact in facts)
        found.append(_kept(pruner))
    assert found[0] == found[1]


FRESH = """
import sys, torch, transformers
torch.manual_seed(0)
kind, folder = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder)
# Without dropout, so that the same loss is compared.
model.eval()
if "Image" in kind:
    given = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
else:
    tokens = torch.arange(3, 21).reshape(2, 9)
    given = {"input_ids": tokens, "labels": tokens}
    print(model.generate(tokens, max_new_tokens=3, min_new_tokens=3).shape[1])
before = model(**given).loss
before.backward()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
    assert all(one.grad is not None for one in model.parameters())
    print(float(model(**given).loss) < float(before))
"""


@pytest.mark.parametrize(
    ("case", "loader", "widths", "wanted"),
    [
        (T5, "AutoModelForSeq2SeqLM", {"neuron": 24, "head": 2}, ["4", "True"]),
        ("MixtralForCausalLM", "AutoModelForCausalLM", {"neuron": 24, "head": 1}, ["12", "True"]),
        ("SwinForImageClassification", "AutoModelForImageClassification", {"neuron": 11}, ["True"]),
    ],
)
def test_a_fresh_process_loads_runs_and_trains_it(
    case: str, loader: str, widths: dict[str, int], wanted: list[str], tmp_path: Path
) -> None:
    small, _ = Surgery(tmp_path, case).write(widths)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, loader, small], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == wanted, done.stderr[-2000:]


@pytest.mark.parametrize("case", [T5, "MixtralForCausalLM", "SwinForImageClassification"])
def test_zero_units_can_go(case: str, tmp_path: Path) -> None:
    """A model whose units are zero answers as before once they are cut."""
    surgery = Surgery(tmp_path, case)
    widths = {kind: surgery.fewer(kind, 0.5) for kind in surgery.counts}
    small, zeroed = surgery.write(widths)
    zeros = Surgery.__new__(Surgery)
    zeros.__dict__.update(surgery.__dict__, reader=WeightReader(zeroed), folder=tmp_path / "again")
    again, _ = zeros.write(widths)
    assert torch.allclose(surgery.answers(again), surgery.answers(zeroed), rtol=0, atol=1e-5)
    first, second = WeightReader(small), WeightReader(again)
    assert all(torch.equal(first.tensor(name), second.tensor(name)) for name in first.names())


@pytest.mark.parametrize("width", [3, 16, 29, 48, 96, 128, 192])
def test_every_number_of_neurons_is_a_ratio_of_all_stages(width: int) -> None:
    family = family_of("SwinForImageClassification")
    config = {"embed_dim": width, "depths": [1, 1, 1, 1], "mlp_ratio": 4.0}
    for kept in range(1, 4 * width + 1):
        found = json.loads(json.dumps(family.resized(config, {"neuron": kept})))
        made = [int(found["mlp_ratio"] * (width << stage)) for stage in range(4)]
        assert made == [kept << stage for stage in range(4)]


def test_stages_of_uneven_widths_keep_their_neurons(tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "m", "SwinForImageClassification", mlp_ratio=1.72)
    found = Inspection.from_json(admit_model(folder_sources(dense)).inspection)
    assert found.structures == ()
    assert "neuron" not in found.granularities
    (neuron,) = [one for one in found.structure_limits if one["kind"] == "neuron"]
    assert "mlp_ratio" in neuron["reason"]


@pytest.mark.parametrize(
    "case", [T5, "T5EncoderModel-gated", "SwinForImageClassification", "Qwen2MoeForCausalLM"]
)
def test_an_inspection_cut_is_the_inspection_of_what_is_cut(case: str, tmp_path: Path) -> None:
    changes = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 80} if "Moe" in case else {}
    surgery = Surgery(tmp_path, case, **changes)
    names = surgery.reader.names()
    neuron = surgery.counts["neuron"]
    for kept in neuron.counts or (1, 7, neuron.count):
        for heads in range(1, surgery.counts["head"].count + 1) if "head" in surgery.counts else [None]:
            widths = {"neuron": kept} | ({} if heads is None else {"head": heads})
            found = resized(surgery.inspection, widths)
            wanted = inspect(surgery.family.resized(surgery.config, widths), names)
            for field in ("sites", "parameters", "bytes", "prunable_parameters", "layer_parameters",
                          "heads", "key_value_heads", "head_dim", "ffn"):  # fmt: skip
                assert getattr(found, field) == getattr(wanted, field), (field, widths)
            told = {one.kind: one.whole for one in wanted.structures}
            # The narrowest has no narrower one, and so no structure.
            assert all(one.whole == told.get(one.kind, one.whole) for one in found.structures)
