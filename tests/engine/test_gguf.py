"""GGUF files: names, keys and weights against independent readers, the same bytes, and what the reading
back notices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compression.anatomy import gguf as runtime
from compression.errors import FormatImpossible
from compression.export.gguf import file, readback
from compression.export.gguf.fields import Field
from compression.export.gguf.tensors import Item, changed, rope_factors
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_llama

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM-tied", {}),
    "llama3": ("LlamaForCausalLM", {"head_dim": 16, "rope_parameters": LLAMA3}),
    "yarn": ("Qwen2ForCausalLM", {"max_position_embeddings": 256, "rope_parameters": YARN}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM-windows", {}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3ForCausalLM-scaled", {"query_pre_attn_scalar": 16}),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel-untied", {"scale_attn_weights": True}),
    "mixtral": ("MixtralForCausalLM", {}),
    "qwen2moe": ("Qwen2MoeForCausalLM", {}),
    "qwen3moe": ("Qwen3MoeForCausalLM", {}),
}
# transformers reads no GGUF of the first Gemma, and takes Mistral and Mixtral for Llamas without experts.
UNREAD = {"gemma", "mistral", "mixtral"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case, with its GGUF file."""
    root = tmp_path_factory.mktemp("gguf")

    def folder(case: str) -> Path:
        found = root / case
        if not found.exists():
            base, changes = CASES[case]
            write(tiny_family(found, base, **changes))
        return found

    return folder


def write(folder: Path) -> Path:
    """Write the file into a model folder, whose config.json becomes the rewritten one."""
    config = admit_model(folder_sources(folder)).config
    (folder / "config.json").write_text(json.dumps(config))
    source = WeightReader(folder)
    file.write(folder / file.NAME, file.plan(config, source, folder), source)
    return folder / file.NAME


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_names_and_reading_back(written: Callable[[str], Path], case: str) -> None:
    folder = written(case)
    assert readback.faults(folder / file.NAME) == []
    config = settings(folder)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == runtime.architecture_of(config))
    layers = config.get("num_hidden_layers") or config["n_layer"]
    table = gguf.get_tensor_name_map(arch, layers)
    for item in file.plan(config, WeightReader(folder), folder).items:
        stored = item.sources[0]
        if ".experts." not in stored:
            assert table.get_name(stored, (".weight", ".bias")) == item.name
        assert item.name.rsplit(".", 1)[0] in {table.get_name(key) for key in table.mapping}


@pytest.mark.parametrize("case", sorted(set(CASES) - UNREAD))
def test_the_reader_of_transformers_gets_the_model_back(written: Callable[[str], Path], case: str) -> None:
    folder = written(case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    for weight in other.parameters():
        torch.nn.init.zeros_(weight)
    path = str(folder / file.NAME)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=other)["tensors"]
    found = other.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if settings(folder)["tie_word_embeddings"] else set()
    assert set(found.missing_keys) <= tied
    assert not found.unexpected_keys
    other.tie_weights()
    rows = torch.randint(3, 131, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(rows).logits - other(rows).logits).abs().max() <= 1e-5


def test_keys_as_transformers_reads_them(written: Callable[[str], Path]) -> None:
    parsed = load_gguf_checkpoint(str(written("llama-tied") / file.NAME))["config"]
    wanted = settings(written("llama-tied"))
    for key in ("hidden_size", "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"):
        assert parsed[key] == wanted[key]
    assert parsed["rms_norm_eps"] == pytest.approx(wanted["rms_norm_eps"])
    gemma = {field.key: field.value for field in _plan(written("gemma3")).fields}
    assert gemma["gemma3.attention.sliding_window_pattern"] == [False, True, False]
    assert (gemma["gemma3.rope.freq_base"], gemma["gemma3.rope.freq_base_swa"]) == (1e6, 1e4)
    assert (gemma["gemma3.rope.scaling.type"], gemma["gemma3.rope.scaling.factor"]) == ("linear", 8.0)
    assert gemma["gemma3.final_logit_softcapping"] == 20.0
    yarn = {field.key.removeprefix("qwen2.rope."): field.value for field in _plan(written("yarn")).fields}
    assert (yarn["scaling.type"], yarn["scaling.factor"]) == ("yarn", 4.0)
    assert (yarn["scaling.original_context_length"], yarn["freq_base"]) == (64, 5000.0)
    experts = {field.key: field.value for field in _plan(written("qwen2moe")).fields}
    assert (experts["qwen2moe.expert_count"], experts["qwen2moe.expert_used_count"]) == (4, 2)
    assert experts["qwen2moe.expert_shared_feed_forward_length"] == 40
    assert "attends to all tokens" in _plan(written("mistral")).remarks[0]


def _plan(folder: Path) -> file.Plan:
    return file.plan(settings(folder), WeightReader(folder), folder)


def test_rotary_order_keeps_the_scores() -> None:
    """Scores by the pairs (i, i + d/2) before the change are those by (2i, 2i + 1) after it."""
    heads, size, hidden = 3, 8, 12
    generator = np.random.default_rng(0)
    query, key = (generator.standard_normal((heads * size, hidden)) for _ in range(2))
    inputs = generator.standard_normal((2, hidden))
    angle = 50.0 ** (-2 * np.arange(size // 2) / size)

    def rotated(weight: np.ndarray, token: int, first: list[int], second: list[int]) -> np.ndarray:
        vector = (weight @ inputs[token]).reshape(heads, size)
        turn = np.exp(1j * angle * (3 + 4 * token))
        return (vector[:, first] + 1j * vector[:, second]) * turn

    halves = list(range(size // 2)), list(range(size // 2, size))
    pairs = list(range(0, size, 2)), list(range(1, size, 2))
    before = (rotated(query, 0, *halves) * rotated(key, 1, *halves).conj()).real.sum(1)
    item = Item("blk.0.attn_q.weight", ("q",), "rotary", heads)
    query, key = (changed(item, torch.from_numpy(weight)).numpy() for weight in (query, key))
    after = (rotated(query, 0, *pairs) * rotated(key, 1, *pairs).conj()).real.sum(1)
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_llama3_factors_are_those_of_transformers(written: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(written("llama3"))
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    found = rope_factors(settings(written("llama3")))
    assert found is not None
    torch.testing.assert_close(found.double(), plain / frequencies.double(), rtol=1e-5, atol=0)
    assert found.unique().numel() > 2
    assert rope_factors(settings(written("llama"))) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types_and_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    first = write(tiny_llama(tmp_path / "a", dtype=dtype, tied=True, store_tied_head=True))
    second = write(tiny_llama(tmp_path / "b", dtype=dtype, tied=True, store_tied_head=True))
    assert first.read_bytes() == second.read_bytes()
    assert readback.faults(first) == []
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(first).tensors}
    assert "output.weight" not in types
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert (
        types["token_embd.weight"] == types["blk.1.ffn_up.weight"] == {"bfloat16": "BF16"}.get(dtype, "F16")
    )


def test_reading_back_notices_what_is_wrong(written: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(written("llama"), folder)
    path, config = folder / file.NAME, settings(folder)
    good = path.read_bytes()
    plan = _plan(folder)

    def faults_of(changed_plan: file.Plan) -> str:
        file.write(path, changed_plan, WeightReader(folder))
        return "; ".join(readback.faults(path))

    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "does not give" in "; ".join(readback.faults(path))
    path.write_bytes(good[: len(good) // 2])
    assert "cannot be read back" in "; ".join(readback.faults(path))
    plain = [replace(item, change="none") for item in plan.items]
    assert "blk.0.attn_q.weight does not give model.layers.0.self_attn.q_proj.weight" in faults_of(
        replace(plan, items=plain)
    )
    wrong = [replace(one, value=7) if one.key == "llama.block_count" else one for one in plan.fields]
    found = faults_of(replace(plan, fields=wrong))
    assert "the key llama.block_count is not what" in found
    assert "blk.3 is missing" in found
    extra = faults_of(replace(plan, fields=[*plan.fields[:-1], Field("llama.odd", "u32", 1)]))
    assert "is missing" in extra
    assert "nobody wrote: llama.odd" in extra
    assert "the tensor output.weight is missing" in faults_of(
        replace(plan, items=plan.items[1:], dtypes=plan.dtypes[1:])
    )
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    path.write_bytes(good)
    assert "head_count_kv is not what" in "; ".join(readback.faults(path))


@pytest.mark.parametrize(
    ("case", "changes", "why"),
    [
        ("OPTForCausalLM", {}, "no GGUF is written of OPTForCausalLM"),
        ("Qwen3ForCausalLM", {}, "attention_bias"),
        ("GemmaForCausalLM-untied", {}, "not tied"),
        ("Gemma2ForCausalLM-uncapped", {}, "no soft caps"),
        ("Gemma2ForCausalLM", {}, "query_pre_attn_scalar is 24, but llama.cpp takes 16"),
        ("Phi3ForCausalLM-long", {}, "of type 'longrope'"),
        ("GPT2LMHeadModel-inverse", {}, "scales its attention scores"),
        ("Qwen2MoeForCausalLM-windows", {}, "norm_topk_prob"),
        ("Qwen2MoeForCausalLM", {"head_dim": 16}, "its heads are 64 wide together"),
        ("LlamaForCausalLM", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("LlamaForCausalLM", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "its own beta_fast"),
    ],
)
def test_models_that_llama_cpp_would_compute_otherwise(
    tmp_path: Path, case: str, changes: dict[str, Any], why: str
) -> None:
    folder = tiny_family(tmp_path / "model", case, **changes)
    with pytest.raises(FormatImpossible, match="No GGUF can be written") as caught:
        write(folder)
    assert why in caught.value.message
    assert caught.value.pointer == "/output/formats"


def test_cuts_after_which_llama_cpp_takes_another_scale() -> None:
    """Of the largest Gemmas it tells the scale by the number of layers."""
    config = {
        "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 46, "hidden_size": 4608,
        "num_attention_heads": 32, "head_dim": 128,
    }  # fmt: skip
    hidden = {"hidden", "neuron+hidden", "neuron+head+hidden"}
    assert set(runtime.limits(config)) == {"layer", "head", "neuron+head", *hidden}
    assert set(runtime.limits({**config, "num_hidden_layers": 47})) == {"layer"}
    assert runtime.limits({**config, "num_hidden_layers": 42}) == {}
