"""Cut models are stock models: masked = removed, whatever the family and the numbers of heads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from compression.anatomy import Inspection, count_macs, inspect
from compression.anatomy.families import FAMILIES, family_of
from compression.anatomy.structures import Group, Slice
from compression.anatomy.widths import resized
from compression.evaluation import stock
from compression.export.model import write_model
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from compression.surgery import CutSource, cut, cuts_of, expanded, masked
from tests.tiny_families import CASES, IMAGES, tiny_family

GRID = [
    (heads, groups) for heads in (4, 8, 12, 16) for groups in (1, 2, 4, 8) if heads % groups == 0
]  # fmt: skip
DECODERS = [
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "Gemma3ForCausalLM",
]  # fmt: skip
SIZES = {"hidden_size": 48, "head_dim": 8, "num_hidden_layers": 2}
TOKENS = torch.arange(3, 3 + 2 * 9).reshape(2, 9)


class Surgery:
    """A tiny model, its groups, and what writes it with fewer units."""

    def __init__(self, folder: Path, case: str, **changes: Any) -> None:
        self.folder = folder
        self.dense = tiny_family(folder / "dense", case, **changes)
        admission = admit_model(folder_sources(self.dense))
        self.config, self.task = admission.config, admission.task
        self.inspection = Inspection.from_json(admission.inspection)
        self.family = family_of(admission.architecture)
        self.reader = WeightReader(self.dense)
        # Hidden channels and whole experts have rules and tests of their own.
        self.counts = {one.kind: one for one in self.inspection.structures if one.kind in ("neuron", "head")}

    def groups(self) -> list[Group]:
        return self.family.groups(self.config, self.reader.names(), list(self.counts))

    def kept(self, widths: dict[str, int]) -> dict[str, Tensor]:
        """Random units of every group, other ones in every layer that may keep others."""
        generator = torch.Generator().manual_seed(1)
        bound: dict[str, Tensor] = {}
        found = {}
        for group in (group for group in self.groups() if group.kind in widths):
            units = torch.randperm(group.count, generator=generator)[: group.kept(widths[group.kind])]
            found[group.name] = bound.setdefault(group.bound or group.name, units)
        return found

    def fewer(self, kind: str, share: float) -> int:
        """About this share of all units, as the classes take them."""
        one = self.counts[kind]
        possible = [n for n in one.counts or range(1, one.count) if n < one.count]
        return min(possible, key=lambda n: (abs(n - share * one.count), n))

    def write(self, widths: dict[str, int]) -> tuple[Path, Path]:
        """The model without the other units, and with zeros in their place."""
        cuts = cuts_of(self.groups(), self.kept(widths))
        resized = self.family.resized(self.config, widths)
        small, zeroed = self.folder / "cut", self.folder / "masked"
        write_model(small, CutSource(self.reader, cuts), resized, self.dense, dtype=torch.float32)
        source = CutSource(self.reader, cuts, zeros=True)
        write_model(zeroed, source, self.config, self.dense, dtype=torch.float32)
        return small, zeroed

    def batch(self) -> dict[str, Tensor]:
        if self.task == "text2text-generation":
            return {"input_ids": TOKENS, "decoder_input_ids": TOKENS.flip(1)[:, :7]}
        if self.inspection.image is None:
            return {"input_ids": TOKENS}
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, *self.inspection.image, generator=generator)}

    def answers(self, folder: Path) -> Tensor:
        model, info = stock.load_with_info(folder, self.task)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            return stock.answer(model, self.batch(), self.task)


def _trains(folder: Path) -> None:
    """One step of gradient descent lowers the loss, with gradients in every parameter."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = model(TOKENS, labels=TOKENS).loss
    before.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
    with torch.no_grad():
        assert float(model(TOKENS, labels=TOKENS).loss) < float(before.detach())


def _generates(folder: Path) -> None:
    """The cache gives the tokens that are found without it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    attention = torch.ones_like(TOKENS)
    found = [
        model.generate(TOKENS, attention_mask=attention, use_cache=cache, **options)
        for cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (2, 13)


@pytest.mark.parametrize(("heads", "key_values"), GRID)
@pytest.mark.parametrize("architecture", DECODERS)
def test_grid_of_heads(architecture: str, heads: int, key_values: int, tmp_path: Path) -> None:
    changes = {**SIZES, "num_attention_heads": heads, "num_key_value_heads": key_values}
    surgery = Surgery(tmp_path, architecture, **changes)
    structure = surgery.counts["head"]
    assert structure.count == (key_values if key_values > 1 else heads)
    possible = [
        number for number in structure.counts or range(1, structure.count) if number < structure.count
    ]
    widths = {"head": possible[-1], "neuron": 21}
    small, zeroed = surgery.write(widths)
    assert torch.allclose(surgery.answers(small), surgery.answers(zeroed), rtol=0, atol=1e-5)
    config = json.loads((small / "config.json").read_text())
    each = heads // structure.count
    assert config["num_attention_heads"] == possible[-1] * each
    assert config["num_key_value_heads"] == (possible[-1] if key_values > 1 else 1)
    again = admit_model(folder_sources(small))
    gone = sum(
        (one.count - widths[one.kind]) * one.parameters for one in surgery.counts.values()
    ) * surgery.inspection.layers  # fmt: skip
    assert again.parameters == surgery.inspection.parameters - gone
    _generates(small)
    _trains(small)


def _offers(case: str) -> bool:
    return bool(family_of(case.split("-")[0]).neurons_key)


# Widths that leave a shared expert as many times wider as it is.
CHANGES: dict[str, dict[str, Any]] = {
    "Qwen2MoeForCausalLM": {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "Qwen2MoeForCausalLM-windows": {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 48},
}


@pytest.mark.parametrize("case", [case for case in (*CASES, *IMAGES) if _offers(case)])
def test_neurons_and_heads_of_every_family(case: str, tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, case, **CHANGES.get(case, {}))
    widths = {"neuron": surgery.fewer("neuron", 0.55)}
    if "head" in surgery.counts:
        widths["head"] = surgery.fewer("head", 0.9)
    small, zeroed = surgery.write(widths)
    found = surgery.answers(small)
    assert torch.allclose(found, surgery.answers(zeroed), rtol=0, atol=1e-5)
    assert not torch.allclose(found, surgery.answers(surgery.dense), rtol=0, atol=1e-3)
    again = Inspection.from_json(admit_model(folder_sources(small)).inspection)
    wanted = resized(surgery.inspection, widths)
    for field in ("sites", "parameters", "bytes", "heads", "head_dim", "ffn", "layer_parameters"):
        assert getattr(again, field) == getattr(wanted, field), field
    assert count_macs(again, 9) == count_macs(wanted, 9)
    if surgery.task == "text-generation":
        _generates(small)
        _trains(small)


def test_which_families_offer_what() -> None:
    offered = {family.name: (bool(family.neurons_key), family.cuts_heads) for family in FAMILIES}
    assert {name for name, (neurons, _) in offered.items() if not neurons} == {"bloom"}
    assert {name for name, (_, heads) in offered.items() if heads} == {"llama", "gemma", "moe", "t5", "vit"}


def test_only_numbers_that_the_config_accepts_are_offered(tmp_path: Path) -> None:
    changes = {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 8}
    assert Surgery(tmp_path / "a", "LlamaForCausalLM", **changes).counts["head"].counts == (1, 2, 3, 4, 6, 8)
    assert Surgery(tmp_path / "b", "MistralForCausalLM", **changes).counts["head"].counts == ()


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "GPT2LMHeadModel", "Phi3ForCausalLM", "BertModel"])
def test_zero_units_can_go(case: str, tmp_path: Path) -> None:
    """A model whose units are zero answers as before once they are cut."""
    surgery = Surgery(tmp_path, case)
    widths = {kind: one.count // 2 for kind, one in surgery.counts.items()}
    small, zeroed = surgery.write(widths)
    first = {name: WeightReader(small).tensor(name) for name in WeightReader(small).names()}
    again = CutSource(WeightReader(zeroed), cuts_of(surgery.groups(), surgery.kept(widths)))
    assert all(torch.equal(first[name], again.tensor(name)) for name in again.names())
    assert torch.allclose(surgery.answers(small), surgery.answers(zeroed), rtol=0, atol=1e-5)


def test_nothing_cut_changes_no_byte(tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, "Qwen3ForCausalLM")
    widths = {kind: one.count for kind, one in surgery.counts.items()}
    small, _ = surgery.write(widths)
    reader = WeightReader(small)
    assert reader.names() == surgery.reader.names()
    assert all(torch.equal(reader.tensor(name), surgery.reader.tensor(name)) for name in reader.names())
    assert inspect(surgery.family.resized(surgery.config, widths), reader.names()).sites == (
        surgery.inspection.sites
    )


def test_cut_by_hand() -> None:
    """Two halves on one axis, units of two indices: written out."""
    tensor = torch.arange(24.0).reshape(8, 3)
    stays = torch.tensor([True, False])
    pieces = [(Slice("w", 0, 0, 2, "w"), stays), (Slice("w", 0, 4, 2, "w"), stays)]
    small = cut(tensor, pieces)
    assert small.tolist() == tensor[[0, 1, 4, 5]].tolist()
    zeroed = tensor.clone()
    zeroed[[2, 3, 6, 7]] = 0
    assert torch.equal(expanded(small, tensor.shape, pieces), zeroed)
    assert torch.equal(masked(tensor, pieces), zeroed)


def test_a_unit_that_there_is_not(tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, "LlamaForCausalLM")
    with pytest.raises(ValueError, match="units 0 to 55"):
        cuts_of(surgery.groups(), {"neuron.0": torch.tensor([56])})


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, "LlamaForCausalLM-tied")
    small, _ = surgery.write({"neuron": 24, "head": 1})
    code = (
        "import sys, torch, transformers; "
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(model.generate(torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 2), max_new_tokens=2,"
        " eos_token_id=None, pad_token_id=0).shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, small], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4"
