"""DistilBERT encoders, with and without a classification head. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Linear, Parts, Sizes, norms
from compression.anatomy.families.encoder import Encoder, classes, dense, labels
from compression.anatomy.families.reader import ConfigReader

_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "dim": keys.WIDTH,
    "n_layers": keys.LAYERS,
    "n_heads": keys.HEADS,
    "hidden_dim": keys.FFN,
    "activation": keys.word("gelu"),
    "dropout": keys.number(0.1),
    "attention_dropout": keys.number(0.1),
    "qa_dropout": keys.number(0.1),
    "seq_classif_dropout": keys.number(0.2),
    "max_position_embeddings": keys.context(512),
    "sinusoidal_pos_embds": keys.flag(False),
    "initializer_range": keys.SPREAD,
    "tie_word_embeddings": keys.flag(True),
}
_CLASSIFIER = "DistilBertForSequenceClassification"
# As in the class of transformers, which knows both spellings.
_OTHER_NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


class DistilBertFamily(Family):
    """DistilBertModel and DistilBertForSequenceClassification; names with or without `distilbert.`."""

    name = "distilbert"
    neurons_key = "hidden_dim"
    architectures: Mapping[str, Architecture] = {
        "DistilBertModel": Architecture("distilbert", "feature-extraction"),
        _CLASSIFIER: Architecture("distilbert", "text-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _OTHER_NAMES)
        keys.head_size(reader, "dim", "n_heads")
        config = keys.read(reader, _KEYS)
        config |= reader.special_tokens(config["vocab_size"])
        return {**config, **labels(reader)} if architecture == _CLASSIFIER else config

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        hidden, ffn, heads, context = (
            config["dim"],
            config["hidden_dim"],
            config["n_heads"],
            config["max_position_embeddings"],
        )
        vocabulary, named = config["vocab_size"], classes(config)
        head = dense("pre_classifier", hidden, hidden) | dense("classifier", len(named or ()), hidden)
        return Encoder(
            sizes=Sizes(config["n_layers"], hidden, heads, heads, hidden // heads, ffn, vocabulary, context),
            base="distilbert.",
            layers="transformer.layer.",
            linears={
                "attention.q_lin": Linear("query", hidden, hidden, True),
                "attention.k_lin": Linear("key", hidden, hidden, True),
                "attention.v_lin": Linear("value", hidden, hidden, True),
                "attention.out_lin": Linear("output", hidden, hidden, True),
                "ffn.lin1": Linear("up", ffn, hidden, True),
                "ffn.lin2": Linear("down", hidden, ffn, True),
            },
            others=norms(hidden, "sa_layer_norm", "output_layer_norm"),
            tables={
                "embeddings.word_embeddings.weight": (vocabulary, hidden),
                "embeddings.position_embeddings.weight": (context, hidden),
            },
            first=norms(hidden, "embeddings.LayerNorm"),
            head=head if named is not None else {},
            labels=named,
            buffers=("embeddings.position_ids",),
        ).parts(names)


FAMILY = DistilBertFamily()
