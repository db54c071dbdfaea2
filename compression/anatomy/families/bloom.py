"""BLOOM decoders: positions by a bias on the scores that grows with the distance. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    DERIVED_HEADS,
    Architecture,
    Config,
    Family,
    Parts,
    Sizes,
    norms,
)
from compression.anatomy.families.decoder import Decoder, fused
from compression.anatomy.families.reader import ConfigReader

_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "n_layer": keys.LAYERS,
    "n_head": keys.HEADS,
    "layer_norm_epsilon": keys.number(1e-5),
    "initializer_range": keys.SPREAD,
    "hidden_dropout": keys.SHARE,
    "attention_dropout": keys.SHARE,
    "apply_residual_connection_post_layernorm": keys.flag(False),
    # No size of the model: the length of the sequences it was trained on.
    "seq_length": keys.context(2048),
    "tie_word_embeddings": keys.flag(True),
    "use_cache": keys.flag(True),
}
# As in the class of transformers, which knows both spellings.
_OTHER_NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


class BloomFamily(Family):
    """BloomForCausalLM; names with or without the prefix `transformer.`."""

    name = "bloom"
    keeps_heads = (
        f"{DERIVED_HEADS}; and the slopes of its positions follow from the number of heads, so that "
        "they would change"
    )
    keeps_neurons = "its class makes the feed-forward 4 times the hidden width, whatever the config says"
    architectures: Mapping[str, Architecture] = {"BloomForCausalLM": Architecture("bloom", "text-generation")}

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _OTHER_NAMES)
        keys.head_size(reader, "hidden_size", "n_head")
        if reader.flag("slow_but_exact", False) and reader.whole("pretraining_tp", 1, 1024, 1) > 1:
            reader.refuse("slow_but_exact", "is true; weights can only be taken as a whole here")
        config = keys.read(reader, _KEYS)
        return config | reader.special_tokens(config["vocab_size"])

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        hidden, heads = config["hidden_size"], config["n_head"]
        sizes = Sizes(
            layers=config["n_layer"],
            hidden=hidden,
            heads=heads,
            key_value_heads=heads,
            head_dim=hidden // heads,
            ffn=4 * hidden,
            vocabulary=config["vocab_size"],
            context=config["seq_length"],
        )
        return Decoder(
            sizes=sizes,
            base="transformer.",
            layers="h.",
            linears=fused(sizes, 3 * hidden, "self_attention", (True, True)),
            others=norms(hidden, "input_layernorm", "post_attention_layernorm"),
            tables={"word_embeddings.weight": (sizes.vocabulary, hidden)},
            first=norms(hidden, "word_embeddings_layernorm"),
            final=norms(hidden, "ln_f"),
            tied=config["tie_word_embeddings"],
        ).parts(names)


FAMILY = BloomFamily()
