"""Layers of widths of their own: padded with zeros or packaged with code, they are the masked model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from compression.anatomy.structures import Group
from compression.anatomy.varied import PACKAGED, varied
from compression.evaluation import stock
from compression.evaluation.cost import cost
from compression.export.gguf import file, readback
from compression.export.model import write_model
from compression.export.per_layer.layout import CODE, PerLayerSource, per_layer_settings
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.surgery import CutSource, cut, cuts_of, padded
from tests.engine.test_surgery import SIZES, TOKENS, Surgery
from tests.tiny_families import CASES

COUNTS = {"neuron": [21, 0, 5], "head": [3, 4, 1]}
CHANGES = {**SIZES, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}


class Padded:
    """A tree of tensors laid over a source."""

    def __init__(self, surgery: Surgery, kept: dict[str, Tensor], widths: dict[str, int]) -> None:
        self._reader = surgery.reader
        groups = surgery.groups()
        self._cuts = cuts_of(groups, kept)
        self._widths = {one.tensor: widths[group.kind] for group in groups for one in group.slices}

    def names(self) -> list[str]:
        return list(self._reader.names())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._reader.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self._reader.tensor(name)
        if name not in self._cuts:
            return tensor
        slices = self._cuts[name]
        return padded(cut(tensor, slices), tensor.shape, slices, self._widths[name])


def _kept(groups: list[Group], counts: dict[str, list[int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        group.name: torch.randperm(group.count, generator=generator)[: counts[group.kind][group.layer]]
        .sort()
        .values
        for group in groups
    }


def _counts(surgery: Surgery, whole: dict[str, list[int]]) -> dict[str, list[int]]:
    """Of the layers that there are, no more units than there are."""
    return {
        kind: [min(one.count, whole[kind][layer % 3]) for layer in range(surgery.inspection.layers)]
        for kind, one in surgery.counts.items()
        if kind in whole
    }


def _masked(surgery: Surgery, kept: dict[str, Tensor]) -> Path:
    folder = surgery.folder / "masked"
    source = CutSource(surgery.reader, cuts_of(surgery.groups(), kept), zeros=True)
    write_model(folder, source, surgery.config, surgery.dense, dtype=torch.float32)
    return folder


@pytest.mark.parametrize(
    "case",
    [
        "LlamaForCausalLM",
        "Gemma2ForCausalLM",
        "Phi3ForCausalLM",
        "GPT2LMHeadModel",
        "OPTForCausalLM",
        "BertModel",
    ],
)
def test_padded_is_masked(case: str, tmp_path: Path) -> None:
    assert case in CASES
    changes = {"num_attention_heads": 8, "num_key_value_heads": 4, **SIZES} if case in PACKAGED else {}
    surgery = Surgery(tmp_path, case, **changes)
    counts = _counts(surgery, {"neuron": [21, 9, 30], "head": [3, 2, 1]})
    kept = _kept(surgery.groups(), counts)
    widths = {kind: max(numbers) for kind, numbers in counts.items()}
    if "head" in widths:
        # Llama's and Gemma's config takes only numbers of heads that divide the hidden width.
        widths["head"] = min(n for n in surgery.counts["head"].counts or range(99) if n >= widths["head"])
    folder = tmp_path / "padded"
    settings = surgery.family.resized(surgery.config, widths)
    write_model(folder, Padded(surgery, kept, widths), settings, surgery.dense, dtype=torch.float32)
    assert torch.allclose(surgery.answers(folder), surgery.answers(_masked(surgery, kept)), rtol=0, atol=1e-5)


def _packaged(surgery: Surgery, counts: dict[str, list[int]]) -> tuple[Path, dict[str, Tensor]]:
    """The packaged model in a folder, with its code; which units it keeps."""
    kept = _kept(surgery.groups(), counts)
    widths = {kind: max(numbers) for kind, numbers in counts.items()}
    settings = surgery.family.resized(surgery.config, widths)
    source = PerLayerSource(Padded(surgery, kept, widths), settings, counts)
    folder = surgery.folder / "packaged"
    write_model(folder, source, per_layer_settings(settings, counts), surgery.dense, dtype=torch.float32)
    shutil.copyfile(CODE, folder / CODE.name)
    return folder, kept


@pytest.mark.parametrize("key_values", [1, 4])
@pytest.mark.parametrize("case", PACKAGED)
def test_packaged_is_masked(case: str, key_values: int, tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, case, **{**CHANGES, "num_key_value_heads": key_values})
    counts = {kind: list(numbers) for kind, numbers in COUNTS.items()}
    counts["head"] = [3, 4, 0] if key_values == 4 else [3, 5, 0]
    for group in surgery.groups():
        # A bias would stay behind alone: jobs keep a unit there.
        if group.output.removesuffix("weight") + "bias" in surgery.reader:
            counts[group.kind][group.layer] = max(1, counts[group.kind][group.layer])
    folder, kept = _packaged(surgery, counts)
    model, info = stock.load_with_info(folder, surgery.task)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found = stock.answer(model, {"input_ids": TOKENS}, surgery.task)
    assert torch.allclose(found, surgery.answers(_masked(surgery, kept)), rtol=0, atol=1e-5)
    options: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    mask = torch.ones_like(TOKENS)
    cached, plain = (
        model.generate(TOKENS, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    loss = model(TOKENS, labels=TOKENS).loss
    loss.backward()
    # Norms before a part that is gone feed nothing.
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("norm" in name for name in idle)


def test_the_engine_runs_it_layer_by_layer_and_counts_it(tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, "Qwen3ForCausalLM", **CHANGES)
    folder, _ = _packaged(surgery, COUNTS)
    settings = json.loads((folder / "config.json").read_text())
    streamed = StreamedModel(folder, settings, surgery.inspection.family)
    model = stock.load(folder, surgery.task)
    with torch.no_grad():
        (found,) = streamed.outputs([{"input_ids": TOKENS}])
        expected = stock.answer(model, {"input_ids": TOKENS}, surgery.task)
    assert torch.equal(found, expected)
    counted = varied(surgery.inspection, COUNTS)
    facts = cost(WeightReader(folder), counted, sequence_length=9, weight_bytes=1, kept_only=True)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    # Twice 8 query heads a layer at 8 wide, as many as stay: 6 + 8 + 2 of 24.
    whole = cost(surgery.reader, surgery.inspection, sequence_length=9, weight_bytes=1)
    sites = sum(9 * site.size for site in counted.sites)
    dense_sites = sum(9 * site.size for site in surgery.inspection.sites)
    assert facts["macs"] - sites - (whole["macs"] - dense_sites) == 2 * 8 * 81 * (16 - 24)


FRESH = """
import sys, torch, transformers
model, info = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], trust_remote_code=True, output_loading_info=True
)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with torch.no_grad():
    torch.save(model.eval()(torch.arange(3, 21).reshape(2, 9)).logits, sys.argv[2])
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except Exception as error:
    print("refused", type(error).__name__)
"""


def test_a_fresh_process_needs_nothing_but_the_folder(tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, "LlamaForCausalLM", **CHANGES)
    folder, kept = _packaged(surgery, {**COUNTS, "neuron": [21, 56, 5]})
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
    found = torch.load(tmp_path / "logits.pt")
    assert torch.allclose(found, surgery.answers(_masked(surgery, kept)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_gguf_says_the_widths_of_every_layer(case: str, tmp_path: Path) -> None:
    surgery = Surgery(tmp_path, case, **CHANGES)
    folder, _ = _packaged(surgery, {"neuron": [21, 56, 5], "head": [3, 4, 1]})
    config = json.loads((folder / "config.json").read_text())
    weights = WeightReader(folder)
    made = file.plan(config, weights, folder)
    file.write(folder / file.NAME, made, weights)
    assert readback.faults(folder / file.NAME) == []
    fields = gguf.GGUFReader(folder / file.NAME).fields
    assert fields["general.architecture"].contents() == "deci"
    assert fields["deci.feed_forward_length"].contents() == [21, 56, 5]
    assert fields["deci.attention.head_count"].contents() == [6, 8, 2]
    assert fields["deci.attention.head_count_kv"].contents() == [3, 4, 1]
    # llama.cpp rotates neighbours: of each head, rows of the two halves take turns.
    (query,) = [
        one for one in gguf.GGUFReader(folder / file.NAME).tensors if one.name == "blk.2.attn_q.weight"
    ]
    stored = weights.tensor("model.layers.2.self_attn.q_proj.weight").numpy()
    rows = [head * 8 + half * 4 + pair for head in range(2) for pair in range(4) for half in range(2)]
    assert np.array_equal(query.data, stored[rows])
    # A wrong number of one layer is noticed.
    config["per_layer_config"]["1"]["num_attention_heads"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert readback.faults(folder / file.NAME)
