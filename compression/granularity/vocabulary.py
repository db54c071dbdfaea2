"""Tokens: rows of the embedding table and the head, with the tokenizer's entries."""

from __future__ import annotations

from compression.granularity import granularities


@granularities.register
class VocabularyRow:
    """A row of every tensor that has one for each token; the tokenizer loses the token."""

    name = "vocabulary"
    summary = "Tokens, with their rows of embeddings and head. Smaller everywhere; the tokenizer changes too."
    pattern = "^vocabulary$"
