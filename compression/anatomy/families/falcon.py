"""Falcon decoders, old (one key-value head, or one for each head) and new (groups of them). No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Parts, Shape, norms, usual_sizes
from compression.anatomy.families.decoder import Decoder, fused
from compression.anatomy.families.reader import ConfigReader
from compression.anatomy.families.rope import rope_parameters

_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "ffn_hidden_size": keys.nullable(keys.FFN),
    "num_ln_in_parallel_attn": keys.nullable(keys.whole(1, 2)),
    "layer_norm_epsilon": keys.number(1e-5),
    "initializer_range": keys.SPREAD,
    "hidden_dropout": keys.SHARE,
    "attention_dropout": keys.SHARE,
    "alibi": keys.flag(False),
    "new_decoder_architecture": keys.flag(False),
    "multi_query": keys.flag(True),
    "parallel_attn": keys.flag(True),
    "bias": keys.flag(False),
    "max_position_embeddings": keys.context(2048),
    "activation": keys.word("gelu"),
    "tie_word_embeddings": keys.flag(True),
    "use_cache": keys.flag(True),
}


class FalconFamily(Family):
    """FalconForCausalLM; names with or without the prefix `transformer.`."""

    name = "falcon"
    neurons_key = "ffn_hidden_size"
    architectures: Mapping[str, Architecture] = {
        "FalconForCausalLM": Architecture("falcon", "text-generation")
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, {"n_embed": "hidden_size"})
        size = keys.head_size(reader)
        config = keys.read(reader, _KEYS)
        if size % 2 and not config["alibi"]:
            reader.refuse("hidden_size", f"gives heads of {size}; rotary positions need an even number")
        new, norms_ = config["new_decoder_architecture"], config["num_ln_in_parallel_attn"]
        if new and not config["parallel_attn"]:
            reader.refuse("parallel_attn", "is false, which the new_decoder_architecture does not know")
        if norms_ == 2 and not new:
            reader.refuse("num_ln_in_parallel_attn", "is 2, which only the new_decoder_architecture knows")
        if new:
            config["num_ln_in_parallel_attn"] = norms_ or 2
        config["num_kv_heads"] = keys.key_value_heads(reader, "num_kv_heads")
        config["ffn_hidden_size"] = config["ffn_hidden_size"] or 4 * config["hidden_size"]
        config["rope_parameters"] = rope_parameters(reader, size, config["max_position_embeddings"])
        return config | reader.special_tokens(config["vocab_size"])

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        ffn, groups = config["ffn_hidden_size"], _groups(config)
        sizes = usual_sizes({**config, "intermediate_size": ffn, "num_key_value_heads": groups})
        hidden = sizes.hidden
        outputs = hidden + 2 * sizes.key_value_heads * sizes.head_dim
        return Decoder(
            sizes=sizes,
            base="transformer.",
            layers="h.",
            linears=fused(sizes, outputs, "self_attention", (config["bias"], config["bias"])),
            others=_norms(config),
            tables={"word_embeddings.weight": (sizes.vocabulary, hidden)},
            final=norms(hidden, "ln_f"),
            tied=config["tie_word_embeddings"],
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("self_attention.rotary_emb.inv_freq",),
        ).parts(names)


def _norms(config: Config) -> dict[str, Shape]:
    hidden = config["hidden_size"]
    if not config["parallel_attn"]:
        return norms(hidden, "input_layernorm", "post_attention_layernorm")
    if config["num_ln_in_parallel_attn"] == 2:
        return norms(hidden, "ln_attn", "ln_mlp")
    return norms(hidden, "input_layernorm")


def _groups(config: Config) -> int:
    """The number of key-value heads."""
    if config["new_decoder_architecture"]:
        return int(config["num_kv_heads"])
    return 1 if config["multi_query"] else int(config["num_attention_heads"])


FAMILY = FalconFamily()
