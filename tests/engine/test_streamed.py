"""Streamed models against the stock ones: the same outputs, bit for bit, with one block in memory at a
time.
"""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from compression.evaluation import stock
from compression.loading import streamed
from compression.loading.streamed import ArchitectureUnsupported, StreamedModel, trimmed_config
from compression.loading.weights import TensorMissing, WeightReader
from tests.tiny_models import tiny_bert, tiny_llama

TASKS = {
    "LlamaForCausalLM": "text-generation",
    "MistralForCausalLM": "text-generation",
    "Qwen2ForCausalLM": "text-generation",
    "BertModel": "feature-extraction",
    "BertForSequenceClassification": "text-classification",
}


def _batches(vocabulary: int = 257, padded: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(1, vocabulary, size, generator=generator)} for size in ((3, 40), (2, 17))
    ]
    if padded:
        for batch in batches:
            mask = torch.ones_like(batch["input_ids"])
            mask[0, 9:] = 0
            batch["attention_mask"] = mask
    return batches


def _assert_like_stock(folder, batches) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    task = TASKS[architecture]
    model = stock.load(folder, task)
    with torch.no_grad():
        expected = [stock.answer(model, batch, task) for batch in batches]
    found = list(StreamedModel(folder).outputs(batches))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_decoders(tmp_path, architecture, dtype, tied):
    folder = tiny_llama(
        tmp_path / "m", architecture=architecture, dtype=dtype, tied=tied, shards=3 if tied else 1, layers=3
    )
    _assert_like_stock(folder, _batches())


def test_a_tied_head_that_is_stored_too(tmp_path):
    _assert_like_stock(tiny_llama(tmp_path / "m", tied=True, store_tied_head=True), _batches())


def test_biases_and_head_sizes_of_their_own(tmp_path):
    folder = tiny_llama(tmp_path / "m", attention_bias=True, mlp_bias=True, head_dim=16)
    _assert_like_stock(folder, _batches())


def test_sliding_windows_differ_by_layer(tmp_path):
    layers = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    folder = tiny_llama(
        tmp_path / "q",
        architecture="Qwen2ForCausalLM",
        layers=4,
        config={
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
            "layer_types": layers,
        },
    )
    _assert_like_stock(folder, _batches())
    folder = tiny_llama(
        tmp_path / "m", architecture="MistralForCausalLM", config={"sliding_window": 8, "head_dim": 8}
    )
    _assert_like_stock(folder, _batches())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix": True, "position_ids": True},
        {"labels": ["a", "b", "c"]},
        {"labels": ["a", "b"], "dtype": "bfloat16", "shards": 2},
        {"dtype": "float16"},
    ],
)
def test_encoders(tmp_path, options, padded):
    _assert_like_stock(tiny_bert(tmp_path / "m", **options), _batches(padded=padded))


def test_an_encoder_without_pooler(tmp_path):
    folder = tiny_bert(tmp_path / "m", pooler=False)
    _assert_like_stock(folder, _batches(padded=True))


def test_only_one_block_is_in_memory(tmp_path, monkeypatch):
    folder = tiny_llama(tmp_path / "m", layers=4)
    alive: list[weakref.ref] = []
    most = 0
    load = StreamedModel.load_block

    def counted(self, index):
        nonlocal most
        block = load(self, index)
        alive.append(weakref.ref(block.module))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return block

    monkeypatch.setattr(StreamedModel, "load_block", counted)
    list(StreamedModel(folder).outputs(_batches()))
    assert len(alive) == 4
    assert most <= 2  # the old one goes when the new one has come


def test_groups_give_the_same_outputs(tmp_path, monkeypatch):
    folder = tiny_llama(tmp_path / "m")
    batches = _batches() + _batches()
    whole = list(StreamedModel(folder).outputs(batches))
    monkeypatch.setattr(streamed, "GROUP_BYTES", 1)
    heard = []
    parts = list(StreamedModel(folder).outputs(batches, lambda done, total: heard.append((done, total))))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert heard[-1] == (8, 8)


def test_an_overlay_stands_in_for_the_weights(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    changed = {name: torch.zeros_like(tensors[name]), f"{name}.mask": torch.zeros(3, dtype=torch.uint8)}
    save_file(changed, tmp_path / "block.safetensors")
    found = list(StreamedModel(folder, overlay=[tmp_path / "block.safetensors"]).outputs(_batches()))
    save_file(tensors | {name: changed[name]}, folder / "model.safetensors", metadata={"format": "pt"})
    expected = list(StreamedModel(folder).outputs(_batches()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kept", [[0], [0, 2], [1, 3], [0, 1, 2, 3]])
def test_dropped_layers_are_as_if_they_had_never_been(tmp_path, kept):
    folder = tiny_llama(tmp_path / "m", layers=4)
    tensors = load_file(folder / "model.safetensors")
    small = tmp_path / "small"
    small.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"num_hidden_layers": len(kept)}))
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[1] != "layers":
            renamed[name] = tensor
        elif int(parts[2]) in kept:
            renamed[".".join([*parts[:2], str(kept.index(int(parts[2]))), *parts[3:]])] = tensor
    save_file(renamed, small / "model.safetensors", metadata={"format": "pt"})
    found = list(StreamedModel(folder, keep_layers=kept).outputs(_batches()))
    expected = list(StreamedModel(small).outputs(_batches()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    _assert_like_stock(small, _batches())


def test_settings_per_layer_are_trimmed():
    settings = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    assert trimmed_config(settings, [0, 2]) == {"num_hidden_layers": 2, "layer_types": ["a", "c"]}
    assert trimmed_config(settings, [0, 1, 2]) == settings


def test_a_dtype_of_its_own_rounds_the_weights(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    outputs = list(StreamedModel(folder, dtype=torch.bfloat16).outputs(_batches()))
    assert outputs[0].dtype == torch.bfloat16


def test_what_cannot_be_run_is_named(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ArchitectureUnsupported, match="OtherModel"):
        StreamedModel(folder, config | {"architectures": ["OtherModel"]})
    with pytest.raises(TensorMissing, match=r"layers\.5"):
        StreamedModel(folder, config | {"num_hidden_layers": 6}).load_block(5)


def test_the_reader_reads_shards_and_rows(tmp_path):
    one = tiny_llama(tmp_path / "one")
    many = tiny_llama(tmp_path / "many", shards=4)
    first, second = WeightReader(one), WeightReader(many)
    assert first.names() == second.names()
    for name in first.names():
        assert torch.equal(first.tensor(name), second.tensor(name))
        assert first.shape(name) == tuple(first.tensor(name).shape)
        assert first.dtype(name) == torch.float32
        parts = [rows for _, rows in first.rows(name, limit=40)]
        assert torch.equal(torch.cat(parts), first.tensor(name))
    assert [start for start, _ in first.rows("model.norm.weight", limit=10)] == [0, 10, 20, 30]
    with pytest.raises(TensorMissing, match="nothing"):
        first.tensor("nothing")
