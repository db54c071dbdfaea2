"""Timing layers: real modules of every family, at every width, with the parts where they belong. No time is
judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compression.anatomy.families import family_of
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import LatencyTable, shape_key, timed_structures
from compression.evaluation import stock, timing
from compression.loading.admission import Admission, admit_model, folder_sources
from compression.loading.architectures import ARCHITECTURES
from tests.tiny_families import architecture_of, tiny_family
from tests.tiny_models import tiny_llama

CASES = [
    "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "OPTForCausalLM",
    "GPT2LMHeadModel", "GPTNeoXForCausalLM", "FalconForCausalLM-alibi", "BloomForCausalLM",
    "MixtralForCausalLM", "BertModel", "RobertaForSequenceClassification", "T5EncoderModel",
    "DistilBertForSequenceClassification", "ViTForImageClassification",
]  # fmt: skip


def _admitted(folder: Path) -> tuple[Admission, Inspection]:
    admission = admit_model(folder_sources(folder))
    return admission, Inspection.from_json(admission.inspection)


def _request(admission: Admission, inspection: Inspection, **changes: Any) -> dict[str, Any]:
    return {
        "config": dict(admission.config),
        "counts": {one.kind: timing.timed_counts(one) for one in timed_structures(inspection)},
        "layers": timing.timed_layers(inspection),
        "task": inspection.task,
        "tokens": 12,
        "image": inspection.image,
        "vocabulary": inspection.vocabulary,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "seconds": 0.0,
        **changes,
    }


@pytest.mark.parametrize("case", CASES)
def test_the_class_itself_is_timed(case: str, tmp_path: Path) -> None:
    """What is built has the stock model's parameters, gives numbers, and its weights beside the layers are
    shared between widths."""
    tiny_family(tmp_path / "model", case)
    admission, inspection = _admitted(tmp_path / "model")
    request = _request(admission, inspection)
    dense = timing.build_model(admission.config, "float32", "cpu")
    loaded = stock.load(tmp_path / "model", inspection.task)
    wanted = {name: value.shape for name, value in loaded.named_parameters() if "pooler" not in name}
    assert {name: one.shape for name, one in dense.named_parameters() if "pooler" not in name} == wanted
    for name, buffer in loaded.named_buffers():
        assert torch.equal(dense.get_buffer(name), buffer), name
    with torch.inference_mode():
        answer = stock.answer(dense, timing.example(request), inspection.task)
    assert bool(torch.isfinite(answer).all())
    path = ARCHITECTURES[architecture_of(case)].blocks[0] + "."
    for one in timed_structures(inspection):
        widths = {one.kind: timing.timed_counts(one)[0]}
        settings = family_of(architecture_of(case)).resized(admission.config, widths)
        less = timing.build_model(settings, "float32", "cpu", like=dense)
        known = dict(dense.named_parameters())
        outside = [name for name, _ in less.named_parameters() if not name.startswith(path)]
        assert outside
        assert all(less.get_parameter(name) is known[name] for name in outside)
        whole, left = (one.elements(count, inspection.layers) for count in (one.count, widths[one.kind]))
        assert _size(dense) - _size(less) == whole - left


def _size(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "MixtralForCausalLM", "BertModel"])
def test_every_width_is_timed_in_every_round(case: str, tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", case)
    request = _request(*_admitted(tmp_path / "model"))
    found = timing.work_through(request)
    assert found["rounds"] == timing.LEAST_ROUNDS
    assert found["layer"] > 0
    assert found["rest"] > 0
    for kind, counts in request["counts"].items():
        assert len(found["shares"][kind]) == len(counts) - 1
        assert all(share > 0 for share in found["shares"][kind])


class _Slow(nn.Module):
    """Notes each call; `blocks` are its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.after = nn.Identity()
        for number, block in enumerate([*self.blocks, self.after]):
            block.register_forward_hook(lambda *_, number=number: self.calls.append(str(number)))
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor) -> Any:
        hidden = input_ids
        for block in self.blocks:
            hidden = block(hidden)

        class Output:
            last_hidden_state = self.after(hidden)

        return Output


def test_what_comes_after_the_layers_is_run_for_the_whole_only() -> None:
    model = _Slow()
    timed = timing.TimedModel(
        model, "blocks", {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}, "feature-extraction", "cpu"
    )
    assert timed.layers() >= 0
    assert model.calls == ["0", "1"]
    layers, total = timed.whole()
    assert model.calls == ["0", "1", "0", "1", "2"]
    assert 0 <= layers <= total


def test_a_table_is_made_in_a_clean_process(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", ffn=96, heads=8, key_value_heads=4, layers=3)
    admission, inspection = _admitted(tmp_path / "model")
    table = timing.measure_table(
        admission.config, inspection, dtype="bfloat16", work=tmp_path / "work", seconds=0.0
    )
    assert (table.shape, table.dtype, table.kind) == (shape_key(inspection), "bfloat16", "cpu")
    assert (table.threads, table.tokens, table.layers) == (1, 128, 3)
    assert set(table.levels) == {"neuron", "head"}
    for one in timed_structures(inspection):
        assert [n for n, _ in table.levels[one.kind]] == timing.timed_counts(one)
        assert table.levels[one.kind][-1] == (one.count, pytest.approx(table.layer))
    assert LatencyTable.model_validate_json(json.dumps(table.model_dump(mode="json"))) == table
    with pytest.raises(timing.TimingFailed):
        timing.measure_table({"architectures": ["No"]}, inspection, dtype="float32", work=tmp_path / "work")


def test_as_many_layers_as_fill_the_caches(tmp_path: Path) -> None:
    from dataclasses import replace

    _, inspection = _admitted(tiny_llama(tmp_path / "model", layers=5))
    assert timing.timed_layers(inspection) == 5
    wide = replace(inspection, layers=30, layer_parameters=timing.CACHE_BYTES // 16)
    assert timing.timed_layers(wide) == 4
    assert timing.timed_layers(replace(wide, dtype="bfloat16")) == 8
    assert timing.timed_layers(replace(wide, layer_parameters=10**9)) == 1


@pytest.mark.parametrize("case", ["T5ForConditionalGeneration-unscaled", "SwinForImageClassification"])
def test_several_lists_of_layers_are_not_timed(case: str, tmp_path: Path) -> None:
    _, inspection = _admitted(tiny_family(tmp_path / "model", case))
    assert not timing.times_layers(inspection)
