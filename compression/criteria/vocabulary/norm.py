"""How long the embedding of a token is."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.tokens import Tokens
from compression.criteria.vocabulary import vocabulary_criteria


@vocabulary_criteria.register
class Norm:
    """2-norm of the row of the embedding table: tokens that training rarely met stay short."""

    name = "norm"
    summary = "2-norm of the row of the embedding table; a baseline."
    paper = None
    needs = frozenset[str]()

    def score(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        """float64 [rows]."""
        return tokens.norms()
