"""OPT decoders. No torch."""

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
    Shape,
    norms,
    usual_sizes,
)
from compression.anatomy.families.decoder import Decoder
from compression.anatomy.families.reader import ConfigReader

_NO_LAST_NORM = "_remove_final_layer_norm"
_OFFSET = 2  # rows of the table of positions that come before the first position
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "ffn_dim": keys.FFN,
    "max_position_embeddings": keys.context(2048),
    "word_embed_proj_dim": keys.nullable(keys.WIDTH),
    "do_layer_norm_before": keys.flag(True),
    "activation_function": keys.word("relu"),
    "dropout": keys.number(0.1),
    "attention_dropout": keys.SHARE,
    "layerdrop": keys.SHARE,
    "init_std": keys.SPREAD,
    "enable_bias": keys.flag(True),
    "layer_norm_elementwise_affine": keys.flag(True),
    "tie_word_embeddings": keys.flag(True),
    "use_cache": keys.flag(True),
}


class OptFamily(Family):
    """OPTForCausalLM; names with or without the prefix `model.`."""

    name = "opt"
    neurons_key = "ffn_dim"
    architectures: Mapping[str, Architecture] = {"OPTForCausalLM": Architecture("opt", "text-generation")}

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        keys.refuse_set(reader, {_NO_LAST_NORM: "models without a norm after their layers are not supported"})
        keys.head_size(reader)
        config = keys.read(reader, _KEYS)
        config["word_embed_proj_dim"] = config["word_embed_proj_dim"] or config["hidden_size"]
        return config | reader.special_tokens(config["vocab_size"])

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        sizes = usual_sizes({**config, "intermediate_size": config["ffn_dim"]})
        hidden, ffn, width = sizes.hidden, sizes.ffn, config["word_embed_proj_dim"]
        bias, affine = config["enable_bias"], config["layer_norm_elementwise_affine"]
        edges: dict[str, Shape] = {
            "decoder.project_out.weight": (width, hidden),
            "decoder.project_in.weight": (hidden, width),
        }
        return Decoder(
            sizes=sizes,
            base="model.",
            layers="decoder.layers.",
            linears={
                "self_attn.q_proj": Linear("query", hidden, hidden, bias),
                "self_attn.k_proj": Linear("key", hidden, hidden, bias),
                "self_attn.v_proj": Linear("value", hidden, hidden, bias),
                "self_attn.out_proj": Linear("output", hidden, hidden, bias),
                "fc1": Linear("up", ffn, hidden, bias),
                "fc2": Linear("down", hidden, ffn, bias),
            },
            others=norms(hidden, "self_attn_layer_norm", "final_layer_norm") if affine else {},
            tables={
                "decoder.embed_tokens.weight": (sizes.vocabulary, width),
                "decoder.embed_positions.weight": (sizes.context + _OFFSET, hidden),
            },
            edges=edges if width != hidden else {},
            final=norms(hidden, "decoder.final_layer_norm")
            if affine and config["do_layer_norm_before"]
            else {},
            tied=config["tie_word_embeddings"],
        ).parts(names)


FAMILY = OptFamily()
