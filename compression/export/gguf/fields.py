"""One key of a GGUF file, and the keys that say what a model is. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compression.anatomy.gguf import architecture_of, by_layer, full_rope, head_size, rotary_size

Kind = Literal["u32", "f32", "bool", "str", "[bool]", "[i32]", "[f32]", "[str]"]

ALIGNMENT = 32
QUANTIZATION_VERSION = 2
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}
"""`general.file_type` by the type of most matrices (llama.cpp's `llama_ftype`)."""

_GEMMA_PATTERNS = {"gemma2": 2, "gemma3": 6}


@dataclass(frozen=True)
class Field:
    """A key, its type in the file, and its value; lists are of one type."""

    key: str
    kind: Kind
    value: Any


def model_fields(config: Mapping[str, Any], name: str, dtype: str) -> list[Field]:
    """The keys `general.*` and those of the architecture. `config` is that of the written model, `dtype` the
    type of its matrices; `general.architecture` is left to the writer, which always begins with it."""
    arch = architecture_of(config)
    general = [
        Field("general.type", "str", "model"),
        Field("general.name", "str", name),
        Field("general.file_type", "u32", FILE_TYPES[dtype]),
        Field("general.quantization_version", "u32", QUANTIZATION_VERSION),
        Field("general.alignment", "u32", ALIGNMENT),
    ]
    parts = [*_sizes(config), *_attention(config), *_rope(config), *_experts(config)]
    return general + [Field(f"{arch}.{part.key}", part.kind, part.value) for part in parts]


def _sizes(config: Mapping[str, Any]) -> Iterator[Field]:
    gpt2 = config["model_type"] == "gpt2"
    hidden = config["n_embd"] if gpt2 else config["hidden_size"]
    ffn = (config["n_inner"] or 4 * hidden) if gpt2 else config["intermediate_size"]
    yield Field("vocab_size", "u32", config["vocab_size"])
    yield Field("context_length", "u32", config["n_positions" if gpt2 else "max_position_embeddings"])
    yield Field("embedding_length", "u32", hidden)
    yield Field("block_count", "u32", config["n_layer" if gpt2 else "num_hidden_layers"])
    if "per_layer_config" in config:
        yield Field("feed_forward_length", "[i32]", by_layer(config, "intermediate_size"))
    else:
        yield Field("feed_forward_length", "u32", ffn)


def _attention(config: Mapping[str, Any]) -> Iterator[Field]:
    gpt2 = config["model_type"] == "gpt2"
    heads = config["n_head" if gpt2 else "num_attention_heads"]
    size = head_size(config)
    if "per_layer_config" in config:
        yield Field("attention.head_count", "[i32]", by_layer(config, "num_attention_heads"))
        yield Field("attention.head_count_kv", "[i32]", by_layer(config, "num_key_value_heads"))
    else:
        yield Field("attention.head_count", "u32", heads)
        yield Field("attention.head_count_kv", "u32", config.get("num_key_value_heads", heads))
    yield Field("attention.key_length", "u32", size)
    yield Field("attention.value_length", "u32", size)
    if gpt2:
        yield Field("attention.layer_norm_epsilon", "f32", config["layer_norm_epsilon"])
    else:
        yield Field("attention.layer_norm_rms_epsilon", "f32", config["rms_norm_eps"])
    yield from _windows(config)
    if architecture_of(config) == "gemma2":
        yield Field("attn_logit_softcapping", "f32", config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping") is not None:
        yield Field("final_logit_softcapping", "f32", config["final_logit_softcapping"])


def _windows(config: Mapping[str, Any]) -> Iterator[Field]:
    arch = architecture_of(config)
    if arch == "phi3":
        # Without the key llama.cpp before 2025-05 took a window for granted.
        yield Field("attention.sliding_window", "u32", config["sliding_window"] or 0)
    if arch not in _GEMMA_PATTERNS:
        return
    yield Field("attention.sliding_window", "u32", config["sliding_window"])
    period = _GEMMA_PATTERNS[arch]
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    # Dropping layers breaks the order that llama.cpp takes for granted.
    if slides != [(layer + 1) % period != 0 for layer in range(len(slides))]:
        yield Field("attention.sliding_window_pattern", "[bool]", slides)


def _rope(config: Mapping[str, Any]) -> Iterator[Field]:
    rope = full_rope(config)
    if not rope:
        return
    yield Field("rope.dimension_count", "u32", rotary_size(config))
    yield Field("rope.freq_base", "f32", rope["rope_theta"])
    if architecture_of(config) == "gemma3":
        yield Field("rope.freq_base_swa", "f32", config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if architecture_of(config) == "phi3":
        yield Field("rope.scaling.original_context_length", "u32", config["original_max_position_embeddings"])
    if rope["rope_type"] in ("linear", "yarn"):
        yield Field("rope.scaling.type", "str", rope["rope_type"])
        yield Field("rope.scaling.factor", "f32", rope["factor"])
    if rope["rope_type"] == "yarn":
        pretrained = rope["original_max_position_embeddings"]
        yield Field("rope.scaling.original_context_length", "u32", pretrained)


def _experts(config: Mapping[str, Any]) -> Iterator[Field]:
    count = config.get("num_local_experts") or config.get("num_experts")
    if not count:
        return
    yield Field("expert_count", "u32", count)
    yield Field("expert_used_count", "u32", config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        yield Field("expert_feed_forward_length", "u32", config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        width = config["shared_expert_intermediate_size"]
        yield Field("expert_shared_feed_forward_length", "u32", width)
