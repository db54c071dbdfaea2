"""RoBERTa encoders: BERT's layers, with positions counted from the padding token and a head of two layers.
No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compression.anatomy.families.base import Architecture, Config, Shape, Sizes
from compression.anatomy.families.bert import BertFamily
from compression.anatomy.families.encoder import Encoder, dense
from compression.anatomy.families.reader import ConfigReader


class RobertaFamily(BertFamily):
    """RobertaModel and RobertaForSequenceClassification; names with or without the prefix `roberta.`."""

    name = "roberta"
    counts_from_padding = True
    architectures: Mapping[str, Architecture] = {
        "RobertaModel": Architecture("roberta", "feature-extraction"),
        "RobertaForSequenceClassification": Architecture("roberta", "text-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = super().rewrite(architecture, reader)
        config["pad_token_id"] = padding = reader.whole("pad_token_id", 0, config["vocab_size"] - 1, 1)
        positions = config["max_position_embeddings"]
        if positions < padding + 3:
            reader.refuse(
                "max_position_embeddings", f"is {positions}; positions begin after pad_token_id ({padding})"
            )
        return config

    def encoder(self, config: Config, sizes: Sizes) -> Encoder:
        # The first pad_token_id + 1 rows of the table of positions belong to no token.
        context = sizes.context - config["pad_token_id"] - 1
        found = super().encoder(config, replace(sizes, context=context))
        if found.labels is None:
            return found
        # Published classifiers often still hold the pooler of the base model, which their class has not.
        return replace(found, buffers=(*found.buffers, "pooler.dense.weight", "pooler.dense.bias"))

    def pools(self, named: tuple[str, ...] | None) -> bool:
        return named is None

    def head(self, hidden: int, count: int) -> dict[str, Shape]:
        return {
            **dense("classifier.dense", hidden, hidden),
            **dense("classifier.out_proj", count, hidden),
        }


FAMILY = RobertaFamily()
