"""Which models llama.cpp runs from a GGUF file, and what its loaders ask of them. No torch.

llama.cpp has one loader and one graph for each architecture; what a graph does not compute cannot be said in
the file. The rules below are those of `src/models/*.cpp` of llama.cpp (the copy in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compression.anatomy.varied import PREFIX

Config = Mapping[str, Any]

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "MixtralForCausalLM": "llama",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
"""llama.cpp's name of the architecture, by the class of transformers."""

PER_LAYER: Mapping[str, str] = {"LlamaForCausalLM": "deci", "MistralForCausalLM": "deci"}
"""The same where every layer has widths of its own: `deci` is `llama` with numbers of heads and neurons for
each layer. Its graph drops the attention of a layer without a feed-forward, so that none may lack one."""

_GEMMAS = ("gemma", "gemma2", "gemma3")
_SILU = ("silu", "swish")
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
# Their loaders take the hidden width for that of all heads together.
_HEADS_FILL_THE_WIDTH = ("qwen2", "qwen2moe")
# Scores of models with so many layers are divided by the root of hidden / heads, of all others by that of
# head_dim.
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
_OF_HEADS = ("head", "neuron+head")
_OF_CHANNELS = ("hidden", "neuron+hidden", "neuron+head+hidden")
_LLAMAS = ("llama", "deci")
_WITH_YARN = (*_LLAMAS, "qwen2", "qwen3", "qwen2moe", "qwen3moe")
# Of these llama.cpp computes something else than transformers, or nothing.
_YARN = {
    "beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None,
    "truncate": True,
}  # fmt: skip
_WITH_WINDOWS = ("gemma2", "gemma3")


def architecture_of(config: Config) -> str | None:
    """llama.cpp's name of a model's architecture; None if this project writes no GGUF of it."""
    name = config["architectures"][0]
    if "per_layer_config" in config:
        return PER_LAYER.get(name.removeprefix(PREFIX))
    return ARCHITECTURES.get(name)


def faults(config: Config) -> list[str]:
    """Why a model cannot be written as GGUF; empty if it can. `config` is a rewritten one."""
    if architecture_of(config) is None:
        return [f"no GGUF is written of {config['architectures'][0]} (it is of {', '.join(ARCHITECTURES)})"]
    return [*_activation(config), *_biases(config), *_rope(config), *_heads(config), *_family(config)]


def limits(config: Config) -> dict[str, str]:
    """Why a model that can be written could not be any more once it is cut, by granularity."""
    arch = architecture_of(config)
    if arch in _HEADS_FILL_THE_WIDTH:
        why = f"llama.cpp's loader of {arch} needs as many heads as fill the hidden width"
        return dict.fromkeys(_OF_HEADS + _OF_CHANNELS, why)
    largest = _LARGEST_GEMMA.get(arch or "")
    if largest is None or config["num_hidden_layers"] < largest:
        return {}
    why = (
        f"llama.cpp derives the scale of the attention from {largest} layers, the hidden width and the "
        "number of heads"
    )
    same = config["hidden_size"] // config["num_attention_heads"] == config["head_dim"]
    more = _OF_HEADS + _OF_CHANNELS if config["num_hidden_layers"] == largest else ()
    return dict.fromkeys((*([] if same else ["layer"]), *more), why)


def remarks(config: Config) -> list[str]:
    """What llama.cpp does differently with the model, as sentences."""
    window, context = config.get("sliding_window"), config.get("max_position_embeddings", 0)
    if architecture_of(config) in _WITH_WINDOWS or not window or window >= context:
        return []
    if "sliding_attention" not in config.get("layer_types", ["sliding_attention"]):
        return []
    return [
        "llama.cpp has no sliding windows in this architecture: it attends to all tokens, the model to the "
        f"last {window:,}, so that texts longer than that give other results."
    ]


def by_layer(config: Config, key: str) -> list[int]:
    """A width of every layer, where each has its own; 0 where the part that it is of was removed."""
    part = "mlp" if key == "intermediate_size" else "attention"
    own = config["per_layer_config"]
    return [
        0 if part in layer.get("skip", ()) else int(layer.get(key, config.get(key, 0)))
        for layer in (own.get(str(index), {}) for index in range(config["num_hidden_layers"]))
    ]


def rotary_size(config: Config) -> int:
    """How many dimensions of a head are rotated."""
    share = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    return int(head_size(config) * share)


def head_size(config: Config) -> int:
    """The width of one head."""
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    return int(config.get("head_dim") or hidden // heads)


def full_rope(config: Config) -> Mapping[str, Any]:
    """The rotary settings of layers that attend to all tokens; empty where positions are a table."""
    rope = config.get("rope_parameters") or {}
    return dict(rope.get("full_attention") or rope)


def _activation(config: Config) -> Iterator[str]:
    arch = architecture_of(config)
    valid = _TANH_GELU if arch in (*_GEMMAS, "gpt2") else _SILU
    key = next((key for key in _ACTIVATION_KEYS if key in config), None)
    if key is not None and config[key] not in valid:
        yield f"{key} is {config[key]!r}, but llama.cpp computes {' or '.join(valid)} in {arch}"


def _biases(config: Config) -> Iterator[str]:
    arch = architecture_of(config)
    if config.get("attention_bias") and arch not in _LLAMAS:
        yield f"attention_bias is true, and llama.cpp's {arch} has no such biases"


def _rope(config: Config) -> Iterator[str]:
    arch, rope = architecture_of(config), full_rope(config)
    kind = rope.get("rope_type", "default")
    valid = ["default", "linear", *(["llama3"] if arch in _LLAMAS else [])]
    valid += ["yarn"] if arch in _WITH_YARN else []
    if kind not in valid:
        yield f"its rotary positions are of type {kind!r}; written are {', '.join(valid)} of {arch}"
    odd = [key for key, usual in _YARN.items() if kind == "yarn" and rope.get(key, usual) != usual]
    if odd:
        yield f"its YaRN has its own {' and '.join(odd)}; only the usual one is written"
    sliding = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    if sliding.get("rope_type", "default") != "default":
        yield "the rotary positions of its windows are scaled, which llama.cpp does not do"


def _heads(config: Config) -> Iterator[str]:
    arch = architecture_of(config)
    if arch not in _HEADS_FILL_THE_WIDTH:
        return
    width, hidden = config["num_attention_heads"] * head_size(config), config["hidden_size"]
    if width != hidden:
        yield f"its heads are {width} wide together, but llama.cpp's {arch} takes hidden_size ({hidden})"


def _family(config: Config) -> Iterator[str]:
    arch, tied = architecture_of(config), config["tie_word_embeddings"]
    if arch in ("gemma", "gemma2") and not tied:
        yield f"its output head is not tied, but llama.cpp's {arch} always takes the embeddings"
    if arch == "qwen2moe" and tied:
        yield "its output head is tied, but llama.cpp's qwen2moe needs one of its own"
    if arch == "gemma2" and None in (config["attn_logit_softcapping"], config["final_logit_softcapping"]):
        yield "it has no soft caps, but llama.cpp's gemma2 always applies both"
    if arch == "gemma3" and config["attn_logit_softcapping"] is not None:
        yield "it caps its attention scores, which llama.cpp's gemma3 does not do"
    if arch in _LARGEST_GEMMA:
        largest = config["num_hidden_layers"] == _LARGEST_GEMMA[arch]
        scale = config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"]
        if config["query_pre_attn_scalar"] != scale:
            yield f"query_pre_attn_scalar is {config['query_pre_attn_scalar']}, but llama.cpp takes {scale}"
    if arch == "gpt2" and not (
        config["scale_attn_weights"] and not config["scale_attn_by_inverse_layer_idx"]
    ):
        yield "it scales its attention scores in a way that llama.cpp's gpt2 does not"
    normed = {"qwen2moe": False, "qwen3moe": True}.get(arch or "")
    if normed is not None and config["norm_topk_prob"] is not normed:
        yield f"norm_topk_prob is {config['norm_topk_prob']}, but llama.cpp's {arch} takes it for {normed}"
