"""GPT-2 decoders. Their weights are stored as [in, out]. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Linear, Parts, Sizes, norms
from compression.anatomy.families.decoder import Decoder
from compression.anatomy.families.reader import ConfigReader

_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "n_embd": keys.WIDTH,
    "n_layer": keys.LAYERS,
    "n_head": keys.HEADS,
    "n_inner": keys.nullable(keys.FFN),
    "n_positions": keys.context(1024),
    "activation_function": keys.word("gelu_new"),
    "resid_pdrop": keys.number(0.1),
    "embd_pdrop": keys.number(0.1),
    "attn_pdrop": keys.number(0.1),
    "layer_norm_epsilon": keys.number(1e-5),
    "initializer_range": keys.SPREAD,
    "scale_attn_weights": keys.flag(True),
    "scale_attn_by_inverse_layer_idx": keys.flag(False),
    "reorder_and_upcast_attn": keys.flag(False),
    "tie_word_embeddings": keys.flag(True),
    "use_cache": keys.flag(True),
}
# As in the class of transformers, which knows both spellings.
_OTHER_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


class Gpt2Family(Family):
    """GPT2LMHeadModel; names with or without the prefix `transformer.`."""

    name = "gpt2"
    neurons_key = "n_inner"
    architectures: Mapping[str, Architecture] = {"GPT2LMHeadModel": Architecture("gpt2", "text-generation")}

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _OTHER_NAMES)
        keys.refuse_set(reader, {"add_cross_attention": "only decoders are supported in this family"})
        keys.head_size(reader, "n_embd", "n_head")
        config = keys.read(reader, _KEYS)
        return config | reader.special_tokens(config["vocab_size"])

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        hidden, heads = config["n_embd"], config["n_head"]
        ffn = config["n_inner"] or 4 * hidden
        sizes = Sizes(
            layers=config["n_layer"],
            hidden=hidden,
            heads=heads,
            key_value_heads=heads,
            head_dim=hidden // heads,
            ffn=ffn,
            vocabulary=config["vocab_size"],
            context=config["n_positions"],
        )
        return Decoder(
            sizes=sizes,
            base="transformer.",
            layers="h.",
            linears={
                "attn.c_attn": Linear("query_key_value", 3 * hidden, hidden, True, True),
                "attn.c_proj": Linear("output", hidden, hidden, True, True),
                "mlp.c_fc": Linear("up", ffn, hidden, True, True),
                "mlp.c_proj": Linear("down", hidden, ffn, True, True),
            },
            others=norms(hidden, "ln_1", "ln_2"),
            tables={"wte.weight": (sizes.vocabulary, hidden), "wpe.weight": (sizes.context, hidden)},
            final=norms(hidden, "ln_f"),
            tied=config["tie_word_embeddings"],
            layer_buffers=("attn.bias",),
            # Scores are divided by the number of the layer, which changes when layers before it go.
            droppable=not config["scale_attn_by_inverse_layer_idx"],
        ).parts(names)


FAMILY = Gpt2Family()
