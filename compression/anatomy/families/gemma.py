"""Gemma decoders, text only: Llama's form with scaled embeddings, and from Gemma 2 on four norms a layer,
soft caps and windows in turns. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Parts, norms, usual_sizes
from compression.anatomy.families.decoder import Decoder, gated
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader
from compression.anatomy.families.rope import rope_parameters, rope_parameters_by_layer
from compression.anatomy.residual import Norms

_ONE, _TWO, _THREE = "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"
_CONTEXTS = {_ONE: 8192, _TWO: 8192, _THREE: 131_072}
_CAP = keys.number(30.0, 1e-3, 1e6)
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "intermediate_size": keys.FFN,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "initializer_range": keys.SPREAD,
    "rms_norm_eps": keys.number(1e-6),
    "attention_bias": keys.flag(False),
    "attention_dropout": keys.SHARE,
    "tie_word_embeddings": keys.flag(True),
    "use_cache": keys.flag(True),
}
_LATER: keys.Keys = {
    "hidden_activation": keys.word("gelu_pytorch_tanh"),
    "query_pre_attn_scalar": keys.whole(1, 1 << 20, 256),
    "sliding_window": keys.whole(1, MAXIMUM_CONTEXT, 4096),
}
_CAPS: dict[str, keys.Keys] = {
    _TWO: {
        "final_logit_softcapping": keys.nullable(_CAP, 30.0),
        "attn_logit_softcapping": keys.nullable(_CAP, 50.0),
    },
    _THREE: {"final_logit_softcapping": keys.nullable(_CAP), "attn_logit_softcapping": keys.nullable(_CAP)},
}
_THETAS = {
    "full_attention": ("rope_theta", 1_000_000.0),
    "sliding_attention": ("rope_local_base_freq", 10_000.0),
}


class GemmaFamily(Family):
    """GemmaForCausalLM, Gemma2ForCausalLM and Gemma3ForCausalLM (text)."""

    name = "gemma"
    neurons_key = "intermediate_size"
    cuts_heads = True
    # Their config classes refuse other numbers, although the models read head_dim.
    even_heads = frozenset({_TWO, _THREE})
    keeps_hidden = ""
    architectures: Mapping[str, Architecture] = {
        _ONE: Architecture("gemma", "text-generation"),
        _TWO: Architecture("gemma2", "text-generation"),
        _THREE: Architecture("gemma3_text", "text-generation"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = keys.read(reader, _KEYS)
        keys.refuse_set(reader, {"use_bidirectional_attention": "only decoders are supported in this family"})
        config["num_key_value_heads"] = keys.key_value_heads(
            reader, default=None if reader.given("num_key_value_heads") else _groups(architecture)
        )
        context = keys.context(_CONTEXTS[architecture])(reader, "max_position_embeddings")
        config["max_position_embeddings"] = context
        config["head_dim"] = size = keys.rotary_size(reader, 256)
        config |= reader.special_tokens(config["vocab_size"])
        if architecture == _ONE:
            # transformers takes "gelu" for the tanh approximation, which the first releases meant by it.
            activation = keys.word("gelu_pytorch_tanh")(reader, "hidden_act")
            config["hidden_act"] = "gelu_pytorch_tanh" if activation == "gelu" else activation
            return {**config, "rope_parameters": rope_parameters(reader, size, context)}
        keys.head_size(reader)
        config |= keys.read(reader, {**_LATER, **_CAPS[architecture]})
        pattern = 2 if architecture == _TWO else reader.whole("sliding_window_pattern", 1, 1 << 16, 6)
        layers = config["num_hidden_layers"]
        default = [
            "sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)
        ]
        config["layer_types"] = keys.layer_types(reader, layers, default, config["sliding_window"])
        if architecture == _TWO:
            return {**config, "rope_parameters": rope_parameters(reader, size, context)}
        return {**config, "rope_parameters": rope_parameters_by_layer(reader, size, context, _THETAS)}

    def norms(self, config: Config) -> Norms:
        if config["model_type"] == "gemma":
            return Norms(offset=1.0, scaled=True)
        normed = config["model_type"] == "gemma3_text"
        return Norms(
            feed_forward="pre_feedforward_layernorm",
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
            head_linears=("self_attn.q_proj", "self_attn.k_proj") if normed else (),
            offset=1.0,
            scaled=True,
        )

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        sizes = usual_sizes(config)
        bias = config["attention_bias"]
        others = norms(sizes.hidden, "input_layernorm", "post_attention_layernorm", bias=False)
        if config["model_type"] != "gemma":
            others |= norms(
                sizes.hidden, "pre_feedforward_layernorm", "post_feedforward_layernorm", bias=False
            )
        if config["model_type"] == "gemma3_text":
            others |= norms(sizes.head_dim, "self_attn.q_norm", "self_attn.k_norm", bias=False)
        return Decoder(
            sizes=sizes,
            base="model.",
            layers="layers.",
            linears=gated(sizes, (bias, bias, False)),
            others=others,
            tables={"embed_tokens.weight": (sizes.vocabulary, sizes.hidden)},
            final=norms(sizes.hidden, "norm", bias=False),
            tied=config["tie_word_embeddings"],
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("self_attn.rotary_emb.inv_freq",),
        ).parts(names)


def _groups(architecture: str) -> int:
    return 16 if architecture == _ONE else 4


FAMILY = GemmaFamily()
