"""BERT-type encoders, with and without a classification head. No torch."""

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
    Sizes,
    norms,
    usual_sizes,
)
from compression.anatomy.families.encoder import Encoder, classes, dense, labels
from compression.anatomy.families.reader import ConfigReader

ENCODERS_ONLY = "only encoders are supported in this family"
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "intermediate_size": keys.FFN,
    "hidden_act": keys.word("gelu"),
    "hidden_dropout_prob": keys.number(0.1),
    "attention_probs_dropout_prob": keys.number(0.1),
    "max_position_embeddings": keys.context(512),
    "type_vocab_size": keys.whole(1, 1 << 16, 2),
    "initializer_range": keys.SPREAD,
    "layer_norm_eps": keys.number(1e-12),
    "use_cache": keys.flag(True),
    "tie_word_embeddings": keys.flag(True),
}


class BertFamily(Family):
    """BertModel and BertForSequenceClassification; names with or without the prefix `bert.`."""

    name = "bert"
    neurons_key = "intermediate_size"
    architectures: Mapping[str, Architecture] = {
        "BertModel": Architecture("bert", "feature-extraction"),
        "BertForSequenceClassification": Architecture("bert", "text-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        keys.refuse_set(reader, dict.fromkeys(("is_decoder", "add_cross_attention"), ENCODERS_ONLY))
        keys.head_size(reader)
        reader.word("position_embedding_type", ("absolute",), "absolute")
        config = keys.read(reader, _KEYS)
        config |= {**reader.special_tokens(config["vocab_size"]), "is_decoder": False}
        if reader.given("classifier_dropout"):
            config["classifier_dropout"] = reader.number("classifier_dropout", 0.0, 1.0, 0.1)
        if self.architectures[architecture].task == "text-classification":
            config |= labels(reader)
        return config

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        return self.encoder(config, usual_sizes(config)).parts(names)

    def encoder(self, config: Config, sizes: Sizes) -> Encoder:
        """The encoder of a config."""
        hidden, named = sizes.hidden, classes(config)
        return Encoder(
            sizes=sizes,
            base=f"{self.name}.",
            layers="encoder.layer.",
            linears=_linears(sizes),
            others=norms(hidden, "attention.output.LayerNorm", "output.LayerNorm"),
            tables={
                "embeddings.word_embeddings.weight": (sizes.vocabulary, hidden),
                "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
                "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
            },
            first=norms(hidden, "embeddings.LayerNorm"),
            pooler=dense("pooler.dense", hidden, hidden) if self.pools(named) else {},
            needs_pooler=named is not None and self.pools(named),
            head=self.head(hidden, len(named)) if named is not None else {},
            labels=named,
            buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
        )

    def pools(self, named: tuple[str, ...] | None) -> bool:
        """Whether a model with these classes (None: a headless one) may have a pooler."""
        return True

    def head(self, hidden: int, count: int) -> dict[str, Shape]:
        """The tensors of the head of a classifier."""
        return dense("classifier", count, hidden)


def _linears(sizes: Sizes) -> dict[str, Linear]:
    hidden, ffn = sizes.hidden, sizes.ffn
    return {
        "attention.self.query": Linear("query", hidden, hidden, True),
        "attention.self.key": Linear("key", hidden, hidden, True),
        "attention.self.value": Linear("value", hidden, hidden, True),
        "attention.output.dense": Linear("output", hidden, hidden, True),
        "intermediate.dense": Linear("up", ffn, hidden, True),
        "output.dense": Linear("down", hidden, ffn, True),
    }


FAMILY = BertFamily()
