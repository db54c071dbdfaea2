"""Llama-type decoders: grouped-query attention with rotary positions, gated feed-forward, RMS norms. No
torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families.base import Architecture, Config, Expected, Macs, Shape, layer_sites
from compression.anatomy.families.reader import (
    MAXIMUM_CONTEXT,
    MAXIMUM_FFN,
    MAXIMUM_LAYERS,
    MAXIMUM_VOCABULARY,
    MAXIMUM_WIDTH,
    ConfigReader,
    shown,
)
from compression.anatomy.families.rope import rope_parameters
from compression.anatomy.inspection import Inspection, Site, elements

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_CONTEXTS = {"LlamaForCausalLM": 2048, "MistralForCausalLM": 4096 * 32, "Qwen2ForCausalLM": 32768}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_PREFIX = "model.layers."


class LlamaFamily:
    """LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM."""

    name = "llama"
    architectures: Mapping[str, Architecture] = {
        "LlamaForCausalLM": Architecture("llama", "text-generation"),
        "MistralForCausalLM": Architecture("mistral", "text-generation"),
        "Qwen2ForCausalLM": Architecture("qwen2", "text-generation"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        vocabulary = reader.whole("vocab_size", 2, MAXIMUM_VOCABULARY)
        hidden = reader.whole("hidden_size", 1, MAXIMUM_WIDTH)
        layers = reader.whole("num_hidden_layers", 1, MAXIMUM_LAYERS)
        heads = reader.whole("num_attention_heads", 1, 4096)
        groups = reader.whole("num_key_value_heads", 1, 4096, heads)
        context = reader.whole("max_position_embeddings", 2, MAXIMUM_CONTEXT, _CONTEXTS[architecture])
        if hidden % heads and (architecture == "LlamaForCausalLM" or not reader.given("head_dim")):
            reader.refuse("hidden_size", f"is {hidden}, no multiple of num_attention_heads ({heads})")
        if heads % groups:
            reader.refuse("num_attention_heads", f"is {heads}, no multiple of num_key_value_heads ({groups})")
        head_dim = reader.whole("head_dim", 2, 4096, hidden // heads)
        if head_dim % 2:
            reader.refuse("head_dim", f"is {head_dim}; rotary positions need an even number")
        config: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": reader.whole("intermediate_size", 1, MAXIMUM_FFN),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": head_dim,
            "hidden_act": reader.word("hidden_act", ACTIVATIONS, "silu"),
            "max_position_embeddings": context,
            "initializer_range": reader.number("initializer_range", 0.0, 1.0, 0.02),
            "rms_norm_eps": reader.number("rms_norm_eps", 0.0, 1.0, 1e-6),
            "attention_dropout": reader.number("attention_dropout", 0.0, 1.0, 0.0),
            "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
            "use_cache": reader.flag("use_cache", True),
            "rope_parameters": rope_parameters(reader, head_dim, context),
            **reader.special_tokens(vocabulary),
        }
        if architecture == "LlamaForCausalLM":
            if reader.whole("pretraining_tp", 0, 1024, 1) > 1:
                reader.refuse(
                    "pretraining_tp", "is above 1, which transformers no longer computes; set it to 1"
                )
            config["attention_bias"] = reader.flag("attention_bias", False)
            config["mlp_bias"] = reader.flag("mlp_bias", False)
        else:
            config |= _windows(architecture, reader, layers)
        return config

    def expected(self, config: Config, names: Iterable[str]) -> Expected:
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        required: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
        optional: dict[str, Shape] = {}
        buffers: dict[str, Shape | None] = {"model.rotary_emb.inv_freq": None}
        for layer in range(config["num_hidden_layers"]):
            prefix = f"{_PREFIX}{layer}."
            required |= {prefix + name: shape for name, shape in _layer(config).items()}
            buffers[f"{prefix}self_attn.rotary_emb.inv_freq"] = None
        required["model.norm.weight"] = (hidden,)
        head = optional if config["tie_word_embeddings"] else required
        head["lm_head.weight"] = (vocabulary, hidden)
        return Expected(required, optional, buffers)

    def inspect(self, config: Config, names: Iterable[str], has_tokenizer: bool) -> Inspection:
        layers = config["num_hidden_layers"]
        sites = _sites(config)
        kept = [
            {
                "name": "model.embed_tokens.weight",
                "reason": "an embedding table: its rows are looked up, not multiplied",
            }
        ]
        tied = config["tie_word_embeddings"]
        head = (
            "tied to the embedding table"
            if tied
            else "the output head: kept dense, every token depends on it"
        )
        kept.append({"name": "lm_head.weight", "reason": head})
        return Inspection(
            family=self.name,
            architecture=config["architectures"][0],
            task="text-generation",
            layers=layers,
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            tied_embeddings=config["tie_word_embeddings"],
            has_tokenizer=has_tokenizer,
            labels=None,
            has_pooler=False,
            layer_prefix=_PREFIX,
            layer_parameters=sum(elements(shape) for shape in _layer(config).values()),
            sites=sites,
            prunable_parameters=sum(site.size for site in sites),
            granularities=("unstructured", "n:m", *(["layer"] if layers > 1 else [])),
            not_prunable=tuple(kept),
        )

    def macs(self, inspection: Inspection, sequence_length: int) -> Macs:
        square = sequence_length * sequence_length
        return Macs(
            tokens=sequence_length,
            sites={site.name: sequence_length * site.size for site in inspection.sites},
            attention=2 * inspection.layers * inspection.heads * inspection.head_dim * square,
            head=sequence_length * inspection.hidden * inspection.vocabulary,
        )


def _shapes(config: Config) -> dict[str, tuple[str, int, int]]:
    hidden, ffn, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    return {
        "self_attn.q_proj.weight": ("query", queries, hidden),
        "self_attn.k_proj.weight": ("key", keys, hidden),
        "self_attn.v_proj.weight": ("value", keys, hidden),
        "self_attn.o_proj.weight": ("output", hidden, queries),
        "mlp.gate_proj.weight": ("gate", ffn, hidden),
        "mlp.up_proj.weight": ("up", ffn, hidden),
        "mlp.down_proj.weight": ("down", hidden, ffn),
    }


def _layer(config: Config) -> dict[str, Shape]:
    """The tensors of one layer by their name inside it."""
    hidden = config["hidden_size"]
    tensors: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    qwen = config["model_type"] == "qwen2"
    for name, (kind, rows, columns) in _shapes(config).items():
        tensors[name] = (rows, columns)
        if kind in ("query", "key", "value"):
            biased = qwen or config.get("attention_bias", False)
        else:
            biased = config.get("attention_bias" if kind == "output" else "mlp_bias", False)
        if biased:
            tensors[name.removesuffix("weight") + "bias"] = (rows,)
    return tensors


def _sites(config: Config) -> tuple[Site, ...]:
    return layer_sites(_PREFIX, config["num_hidden_layers"], _shapes(config))


def _windows(architecture: str, reader: ConfigReader, layers: int) -> dict[str, Any]:
    """The keys about sliding windows of Mistral and Qwen2."""
    given = reader.given("sliding_window")
    window = reader.whole("sliding_window", 1, MAXIMUM_CONTEXT) if given else None
    if architecture == "MistralForCausalLM":
        # An absent key means the class's default of 4096, a null means no window.
        window = window if "sliding_window" in reader.config else 4096
        kind = "full_attention" if window is None else "sliding_attention"
        types = reader.config.get("layer_types")
        if types is not None and types != [kind] * layers:
            reader.refuse("layer_types", f"is {shown(types)}; every layer of this model is {kind!r}")
        return {"sliding_window": window}
    used = reader.flag("use_sliding_window", False)
    first = reader.whole("max_window_layers", 0, 1 << 16, 28)
    window = (window if "sliding_window" in reader.config else 4096) if used else None
    sliding = [window is not None and layer >= first for layer in range(layers)]
    default = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    types = reader.config.get("layer_types") or default
    if not isinstance(types, list) or len(types) != layers or any(item not in _LAYER_TYPES for item in types):
        reader.refuse(
            "layer_types", f"is {shown(types)}; it must list {layers} of {' and '.join(_LAYER_TYPES)}"
        )
    if window is None and "sliding_attention" in types:
        reader.refuse("layer_types", "has sliding_attention, but there is no sliding_window in use")
    return {
        "sliding_window": window,
        "use_sliding_window": used,
        "max_window_layers": first,
        "layer_types": types,
    }


FAMILY = LlamaFamily()
