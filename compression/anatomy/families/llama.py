"""Llama-type decoders: grouped-query attention with rotary positions, gated feed-forward, RMS norms. No
torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Parts, norms, usual_sizes
from compression.anatomy.families.decoder import Decoder, gated
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader, shown
from compression.anatomy.families.rope import rope_parameters
from compression.anatomy.residual import Norms

_LLAMA, _MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
_QWEN2, _QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
_CONTEXTS = {_LLAMA: 2048, _MISTRAL: 4096 * 32, _QWEN2: 32768, _QWEN3: 32768}
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "intermediate_size": keys.FFN,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "hidden_act": keys.word("silu"),
    "initializer_range": keys.SPREAD,
    "rms_norm_eps": keys.number(1e-6),
    "attention_dropout": keys.SHARE,
    "tie_word_embeddings": keys.flag(False),
    "use_cache": keys.flag(True),
}


class LlamaFamily(Family):
    """LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM."""

    name = "llama"
    neurons_key = "intermediate_size"
    cuts_heads = True
    # Their config classes refuse other numbers, although the models read head_dim.
    even_heads = frozenset({_LLAMA})
    keeps_hidden = ""
    architectures: Mapping[str, Architecture] = {
        _LLAMA: Architecture("llama", "text-generation"),
        _MISTRAL: Architecture("mistral", "text-generation"),
        _QWEN2: Architecture("qwen2", "text-generation"),
        _QWEN3: Architecture("qwen3", "text-generation"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = keys.read(reader, _KEYS)
        config["num_key_value_heads"] = keys.key_value_heads(reader)
        config["max_position_embeddings"] = keys.context(_CONTEXTS[architecture])(
            reader, "max_position_embeddings"
        )
        if architecture == _QWEN3:
            size = 128
        elif architecture == _LLAMA or not reader.given("head_dim"):
            size = keys.head_size(reader)
        else:
            size = 0
        config["head_dim"] = keys.rotary_size(reader, size)
        config["rope_parameters"] = rope_parameters(
            reader, config["head_dim"], config["max_position_embeddings"]
        )
        config |= reader.special_tokens(config["vocab_size"])
        if architecture in (_LLAMA, _QWEN3):
            config["attention_bias"] = reader.flag("attention_bias", False)
        if architecture == _LLAMA:
            if reader.whole("pretraining_tp", 0, 1024, 1) > 1:
                reader.refuse(
                    "pretraining_tp", "is above 1, which transformers no longer computes; set it to 1"
                )
            config["mlp_bias"] = reader.flag("mlp_bias", False)
        else:
            config |= _windows(architecture, reader, config["num_hidden_layers"])
        return config

    def norms(self, config: Config) -> Norms:
        normed = config["model_type"] == "qwen3"
        return Norms(head_linears=("self_attn.q_proj", "self_attn.k_proj") if normed else ())

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        sizes = usual_sizes(config)
        output = config.get("attention_bias", False)
        biases = (output or config["model_type"] == "qwen2", output, config.get("mlp_bias", False))
        others = norms(sizes.hidden, "input_layernorm", "post_attention_layernorm", bias=False)
        if config["model_type"] == "qwen3":
            others |= norms(sizes.head_dim, "self_attn.q_norm", "self_attn.k_norm", bias=False)
        return Decoder(
            sizes=sizes,
            base="model.",
            layers="layers.",
            linears=gated(sizes, biases),
            others=others,
            tables={"embed_tokens.weight": (sizes.vocabulary, sizes.hidden)},
            final=norms(sizes.hidden, "norm", bias=False),
            tied=config["tie_word_embeddings"],
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("self_attn.rotary_emb.inv_freq",),
        ).parts(names)


def _windows(architecture: str, reader: ConfigReader, layers: int) -> dict[str, Any]:
    """The keys about sliding windows of Mistral and Qwen."""
    given = reader.given("sliding_window")
    window = reader.whole("sliding_window", 1, MAXIMUM_CONTEXT) if given else None
    if architecture == _MISTRAL:
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
    return {
        "sliding_window": window,
        "use_sliding_window": used,
        "max_window_layers": first,
        "layer_types": keys.layer_types(reader, layers, default, window),
    }


FAMILY = LlamaFamily()
