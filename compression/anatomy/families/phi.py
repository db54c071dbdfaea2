"""Phi decoders: Phi 1 to 2 with attention and feed-forward side by side and partly rotated heads, Phi 3 and
4 of Llama's form with fused weights. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    Architecture,
    Config,
    Family,
    Linear,
    Parts,
    Sizes,
    norms,
    usual_sizes,
)
from compression.anatomy.families.decoder import Decoder
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader
from compression.anatomy.families.rope import partial_rope_parameters

_PHI, _PHI3 = "PhiForCausalLM", "Phi3ForCausalLM"
_PRETRAINED = "original_max_position_embeddings"
_PHI3_PADDING = 32000
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "intermediate_size": keys.FFN,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "resid_pdrop": keys.SHARE,
    "embd_pdrop": keys.SHARE,
    "attention_dropout": keys.SHARE,
    "initializer_range": keys.SPREAD,
    "tie_word_embeddings": keys.flag(False),
    "use_cache": keys.flag(True),
}
_OWN: dict[str, keys.Keys] = {
    _PHI: {
        "hidden_act": keys.word("gelu_new"),
        "layer_norm_eps": keys.number(1e-5),
        "max_position_embeddings": keys.context(2048),
        "qk_layernorm": keys.flag(False),
    },
    _PHI3: {
        "hidden_act": keys.word("silu"),
        "rms_norm_eps": keys.number(1e-5),
        "max_position_embeddings": keys.context(4096),
        _PRETRAINED: keys.whole(1, MAXIMUM_CONTEXT, 4096),
        "sliding_window": keys.nullable(keys.whole(1, MAXIMUM_CONTEXT)),
    },
}


class PhiFamily(Family):
    """PhiForCausalLM and Phi3ForCausalLM."""

    name = "phi"
    neurons_key = "intermediate_size"
    keeps_heads = "cutting its heads, which Phi 3 stores as one weight, is not built"
    keeps_hidden = (
        "Phi 1 to 2 have layer norms, and Phi 3 and 4 are taken in only with heads as wide as "
        "hidden_size / num_attention_heads"
    )
    architectures: Mapping[str, Architecture] = {
        _PHI: Architecture("phi", "text-generation"),
        _PHI3: Architecture("phi3", "text-generation"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = keys.read(reader, {**_KEYS, **_OWN[architecture]})
        config["num_key_value_heads"] = keys.key_value_heads(reader)
        size = keys.head_size(reader)
        if reader.whole("head_dim", 2, 4096, size) != size:
            reader.refuse("head_dim", f"differs from hidden_size / num_attention_heads ({size})")
        default = 0.5 if architecture == _PHI else 1.0
        rope = partial_rope_parameters(
            reader if architecture == _PHI else _long(reader),
            size,
            config["max_position_embeddings"],
            default,
        )
        if architecture == _PHI3 and rope["rope_type"] not in ("default", "longrope"):
            reader.refuse(
                "rope_parameters.rope_type", f"is {rope['rope_type']!r}; Phi 3 knows default and longrope"
            )
        if _PRETRAINED in rope and architecture == _PHI3:
            rope[_PRETRAINED] = config[_PRETRAINED]
        config["rope_parameters"] = rope
        config |= reader.special_tokens(config["vocab_size"])
        if architecture == _PHI3 and config.get("pad_token_id", _PHI3_PADDING) == _PHI3_PADDING:
            if config["vocab_size"] <= _PHI3_PADDING:
                reader.refuse("pad_token_id", f"is missing; its default of {_PHI3_PADDING} is no token here")
        return config

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        sizes = usual_sizes(config)
        parallel = config["model_type"] == "phi"
        if parallel:
            others = norms(sizes.hidden, "input_layernorm")
            if config["qk_layernorm"]:
                others |= norms(sizes.head_dim, "self_attn.q_layernorm", "self_attn.k_layernorm")
        else:
            others = norms(sizes.hidden, "input_layernorm", "post_attention_layernorm", bias=False)
        return Decoder(
            sizes=sizes,
            base="model.",
            layers="layers.",
            linears=_parallel(sizes) if parallel else _fused(sizes),
            others=others,
            tables={"embed_tokens.weight": (sizes.vocabulary, sizes.hidden)},
            final=norms(sizes.hidden, "final_layernorm")
            if parallel
            else norms(sizes.hidden, "norm", bias=False),
            tied=config["tie_word_embeddings"],
            head_bias=parallel,
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("self_attn.rotary_emb.inv_freq",),
        ).parts(names)


def _parallel(sizes: Sizes) -> dict[str, Linear]:
    hidden, ffn = sizes.hidden, sizes.ffn
    keys_ = sizes.key_value_heads * sizes.head_dim
    return {
        "self_attn.q_proj": Linear("query", hidden, hidden, True),
        "self_attn.k_proj": Linear("key", keys_, hidden, True),
        "self_attn.v_proj": Linear("value", keys_, hidden, True),
        "self_attn.dense": Linear("output", hidden, hidden, True),
        "mlp.fc1": Linear("up", ffn, hidden, True),
        "mlp.fc2": Linear("down", hidden, ffn, True),
    }


def _fused(sizes: Sizes) -> dict[str, Linear]:
    hidden, ffn = sizes.hidden, sizes.ffn
    outputs = (sizes.heads + 2 * sizes.key_value_heads) * sizes.head_dim
    return {
        "self_attn.qkv_proj": Linear("query_key_value", outputs, hidden),
        "self_attn.o_proj": Linear("output", hidden, hidden),
        "mlp.gate_up_proj": Linear("gate_up", 2 * ffn, hidden),
        "mlp.down_proj": Linear("down", hidden, ffn),
    }


def _long(reader: ConfigReader) -> ConfigReader:
    """The same config with the name that Phi 3 has today for what its first releases called su and yarn."""
    config = dict(reader.config)
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        if isinstance(given, dict) and given.get("rope_type", given.get("type")) in ("su", "yarn"):
            config[key] = {**given, "rope_type": "longrope"}
    return ConfigReader(config, reader.where)


FAMILY = PhiFamily()
