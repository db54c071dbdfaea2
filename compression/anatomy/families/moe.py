"""Mixtures of experts: Llama-type attention, and in every layer a router that sends each token to a few of
many gated feed-forwards. No torch.

Checkpoints store one tensor for each weight of an expert, or (as save_pretrained writes a model that was
loaded so) one for all experts of a layer; both are taken in. Routers stay dense: they are small, and decide
which experts a token sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    MAXIMUM_EXPERTS,
    Architecture,
    Config,
    Family,
    Linear,
    Parts,
    Shape,
    Sizes,
    norms,
    usual_sizes,
)
from compression.anatomy.families.decoder import Decoder, gated
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader, shown
from compression.anatomy.families.rope import rope_parameters
from compression.anatomy.residual import Norms
from compression.anatomy.slices import Slice
from compression.anatomy.structures import Kind, Widths

_MIXTRAL, _QWEN2, _QWEN3 = "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"
_ROUTER = "the router: small, and it decides which experts a token sees"
# The kernel that multiplies with all experts at once takes rows of whole 16 bytes, 8 numbers of 16 bits.
EXPERT_MULTIPLE = 8
_SHARED = "shared_expert_intermediate_size"
_SHARED_GATE = "the gate of the shared expert: one number a token"
_WINDOW = keys.whole(1, MAXIMUM_CONTEXT)
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "intermediate_size": keys.FFN,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "hidden_act": keys.word("silu"),
    "initializer_range": keys.SPREAD,
    "attention_dropout": keys.SHARE,
    "tie_word_embeddings": keys.flag(False),
    "use_cache": keys.flag(True),
    "router_aux_loss_coef": keys.number(0.001, 0.0, 1e3),
}
_OWN: Mapping[str, keys.Keys] = {
    _MIXTRAL: {
        "max_position_embeddings": keys.context(4096 * 32),
        "rms_norm_eps": keys.number(1e-5),
        "num_local_experts": keys.whole(1, MAXIMUM_EXPERTS, 8),
        "num_experts_per_tok": keys.whole(1, MAXIMUM_EXPERTS, 2),
        "router_jitter_noise": keys.SHARE,
        "sliding_window": keys.nullable(_WINDOW),
    },
    _QWEN2: {
        "max_position_embeddings": keys.context(32768),
        "rms_norm_eps": keys.number(1e-6),
        "num_experts": keys.whole(1, MAXIMUM_EXPERTS, 60),
        "num_experts_per_tok": keys.whole(1, MAXIMUM_EXPERTS, 4),
        "moe_intermediate_size": keys.whole(1, 1 << 20, 1408),
        "shared_expert_intermediate_size": keys.whole(1, 1 << 20, 5632),
        "norm_topk_prob": keys.flag(False),
        "qkv_bias": keys.flag(True),
        "max_window_layers": keys.whole(0, 1 << 16, 28),
        "use_sliding_window": keys.flag(False),
    },
    _QWEN3: {
        "max_position_embeddings": keys.context(32768),
        "rms_norm_eps": keys.number(1e-6),
        "num_experts": keys.whole(1, MAXIMUM_EXPERTS, 128),
        "num_experts_per_tok": keys.whole(1, MAXIMUM_EXPERTS, 8),
        "moe_intermediate_size": keys.whole(1, 1 << 20, 768),
        "norm_topk_prob": keys.flag(False),
        "attention_bias": keys.flag(False),
        "use_sliding_window": keys.flag(False),
    },
}
# Key-value heads where the config does not say; the rotary base of the class; spellings of the number of
# experts.
_GROUPS = {_MIXTRAL: 8, _QWEN2: 16, _QWEN3: 4}
_THETAS = {_MIXTRAL: 1e6, _QWEN2: 1e4, _QWEN3: 1e4}
_COUNT: Mapping[str, str] = {_MIXTRAL: "num_local_experts", _QWEN2: "num_experts", _QWEN3: "num_experts"}
_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    _MIXTRAL: {"num_experts": "num_local_experts"},
    _QWEN2: {},
    _QWEN3: {"num_local_experts": "num_experts"},
}


class MoeFamily(Family):
    """MixtralForCausalLM, Qwen2MoeForCausalLM and Qwen3MoeForCausalLM, with experts in every layer."""

    name = "moe"
    architectures: Mapping[str, Architecture] = {
        _MIXTRAL: Architecture("mixtral", "text-generation"),
        _QWEN2: Architecture("qwen2_moe", "text-generation"),
        _QWEN3: Architecture("qwen3_moe", "text-generation"),
    }
    experts_keys = _COUNT
    neurons_key = "moe_intermediate_size"
    cuts_heads = True
    keeps_equal = "All experts of all layers are of one width"
    neurons_of = "expert"
    keeps_hidden = ""

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _SPELLINGS[architecture])
        config = keys.read(reader, {**_KEYS, **_OWN[architecture]})
        groups = None if reader.given("num_key_value_heads") else _GROUPS[architecture]
        config["num_key_value_heads"] = keys.key_value_heads(reader, default=groups)
        count = config[_COUNT[architecture]]
        if config["num_experts_per_tok"] > count:
            reader.refuse(
                "num_experts_per_tok", f"is {config['num_experts_per_tok']}, but there are {count} experts"
            )
        given = reader.given("head_dim")
        size = keys.rotary_size(reader, 0 if given else keys.head_size(reader))
        if given:
            config["head_dim"] = size
        config["rope_parameters"] = rope_parameters(
            reader, size, config["max_position_embeddings"], _THETAS[architecture]
        )
        config |= reader.special_tokens(config["vocab_size"])
        if architecture != _MIXTRAL:
            config |= _everywhere(reader)
            config |= _windows(architecture, reader, config)
        return config

    def norms(self, config: Config) -> Norms:
        normed = config["model_type"] == "qwen3_moe"
        return Norms(head_linears=("self_attn.q_proj", "self_attn.k_proj") if normed else ())

    def why_not(self, kind: Kind, config: Config) -> str:
        if kind == "neuron" and len(_widths(config)) == 1:
            return (
                f"its experts are {config[_width_key(config)]} wide and the one that all tokens share "
                f"{config.get(_SHARED)}, and no smaller widths in that ratio make the former a multiple of "
                f"{EXPERT_MULTIPLE}"
            )
        return super().why_not(kind, config)

    def _counts(self, config: Config, kind: Kind) -> tuple[int, ...]:
        return _widths(config) if kind == "neuron" else super()._counts(config, kind)

    def resized(self, config: Config, widths: Widths) -> dict[str, Any]:
        result = super().resized(config, {kind: kept for kind, kept in widths.items() if kind != "neuron"})
        if "neuron" in widths:
            key = _width_key(config)
            result[key] = widths["neuron"]
            if _SHARED in config:
                # Of the shared expert the same part stays.
                result[_SHARED] = config[_SHARED] * widths["neuron"] // config[key]
        return result

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        present = list(names)
        # The experts' width: what is called intermediate_size in Qwen's configs nothing has.
        sizes = replace(usual_sizes(config), ffn=config[_width_key(config)])
        kind, hidden = config["model_type"], sizes.hidden
        others = norms(hidden, "input_layernorm", "post_attention_layernorm", bias=False)
        if kind == "qwen3_moe":
            others |= norms(sizes.head_dim, "self_attn.q_norm", "self_attn.k_norm", bias=False)
        owner = _owner(kind, present)
        count = config[_COUNT[config["architectures"][0]]]
        share = config["num_experts_per_tok"] / count
        kept = {f"{owner}.gate.weight": _ROUTER}
        others[f"{owner}.gate.weight"] = (count, hidden)
        linears, slices = _attention(config, sizes), {}
        if kind == "qwen2_moe":
            shared = replace(sizes, ffn=config[_SHARED])
            linears |= _feed_forward("mlp.shared_expert", "qwen2_moe", shared, 1.0)
            kept["mlp.shared_expert_gate.weight"] = _SHARED_GATE
            others["mlp.shared_expert_gate.weight"] = (1, hidden)
        if any(name.endswith(".experts.gate_up_proj") for name in present):
            others |= _fused(owner, count, sizes)
            slices = _slices(owner, count, sizes, share)
        else:
            for expert in range(count):
                linears |= _feed_forward(f"{owner}.experts.{expert}", kind, sizes, share)
        return Decoder(
            sizes=sizes,
            base="model.",
            layers="layers.",
            linears=linears,
            slices=slices,
            others=others,
            tables={"embed_tokens.weight": (sizes.vocabulary, hidden)},
            final=norms(hidden, "norm", bias=False),
            tied=config["tie_word_embeddings"],
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("self_attn.rotary_emb.inv_freq",),
            layer_kept=kept,
            layer_macs=sum(others[name][0] * hidden for name in kept),
            routers=(f"{owner}.gate.weight",),
        ).parts(present)


def _width_key(config: Config) -> str:
    """The key that says how wide the feed-forward of an expert is."""
    return "intermediate_size" if config["architectures"][0] == _MIXTRAL else "moe_intermediate_size"


def _widths(config: Config) -> tuple[int, ...]:
    """How wide experts may become, ascending; a shared expert stays as many times wider as it is."""
    width = config[_width_key(config)]
    step = math.lcm(EXPERT_MULTIPLE, width // math.gcd(width, config.get(_SHARED, width)))
    return (*range(step, width, step), width)


def _attention(config: Config, sizes: Sizes) -> dict[str, Linear]:
    """The weights of the attention of a layer."""
    output = config.get("attention_bias", False)
    weights = gated(sizes, (output or config.get("qkv_bias", False), output, False))
    return {name: linear for name, linear in weights.items() if name.startswith("self_attn.")}


def _owner(kind: str, names: Iterable[str]) -> str:
    """The module that holds the experts, as the files call it: Mixtral's has an old name and a new one."""
    found = list(names)
    old = kind == "mixtral" and (not found or any(".block_sparse_moe." in name for name in found))
    return "block_sparse_moe" if old else "mlp"


def _feed_forward(place: str, kind: str, sizes: Sizes, share: float) -> dict[str, Linear]:
    """The weights of one gated feed-forward."""
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    hidden, ffn = sizes.hidden, sizes.ffn
    return {
        f"{place}.{gate}": Linear("gate", ffn, hidden, share=share),
        f"{place}.{up}": Linear("up", ffn, hidden, share=share),
        f"{place}.{down}": Linear("down", hidden, ffn, share=share),
    }


def _fused(owner: str, count: int, sizes: Sizes) -> dict[str, Shape]:
    """The stored tensors of experts that are stored together."""
    return {
        f"{owner}.experts.gate_up_proj": (count, 2 * sizes.ffn, sizes.hidden),
        f"{owner}.experts.down_proj": (count, sizes.hidden, sizes.ffn),
    }


def _slices(owner: str, count: int, sizes: Sizes, share: float) -> dict[str, Linear]:
    """The weights inside those tensors."""
    hidden, ffn = sizes.hidden, sizes.ffn
    found = {}
    for expert in range(count):
        for part in ("gate", "up"):
            name = Slice(f"{owner}.experts.gate_up_proj", expert, part).name
            found[name] = Linear(part, ffn, hidden, share=share)
        found[Slice(f"{owner}.experts.down_proj", expert).name] = Linear("down", hidden, ffn, share=share)
    return found


def _everywhere(reader: ConfigReader) -> dict[str, Any]:
    """The keys of Qwen that say which layers have experts: all of them, or the model is refused."""
    reason = "; only models with experts in every layer are supported"
    if reader.whole("decoder_sparse_step", 1, 1024, 1) != 1:
        reader.refuse("decoder_sparse_step", f"is {shown(reader.config['decoder_sparse_step'])}{reason}")
    if reader.config.get("mlp_only_layers") not in (None, []):
        reader.refuse("mlp_only_layers", f"is {shown(reader.config['mlp_only_layers'])}{reason}")
    return {"decoder_sparse_step": 1, "mlp_only_layers": []}


def _windows(architecture: str, reader: ConfigReader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of Qwen about sliding windows; a window that is not in use is left out."""
    used, layers = config["use_sliding_window"], config["num_hidden_layers"]
    window = None
    if used and (reader.given("sliding_window") or "sliding_window" not in reader.config):
        window = reader.whole("sliding_window", 1, MAXIMUM_CONTEXT, 4096)
    found: dict[str, Any] = {"sliding_window": window} if used else {}
    if architecture == _QWEN2:
        slides = [used and layer % 2 == 0 and layer < config["max_window_layers"] for layer in range(layers)]
        default = ["sliding_attention" if slide else "full_attention" for slide in slides]
        found["layer_types"] = keys.layer_types(reader, layers, default, window)
    return found


FAMILY = MoeFamily()
