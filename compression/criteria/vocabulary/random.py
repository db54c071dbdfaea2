"""Random tokens: what any other criterion must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.tokens import Tokens
from compression.criteria.vocabulary import vocabulary_criteria


@vocabulary_criteria.register
class Random:
    """Uniform in [0, 1)."""

    name = "random"
    summary = "Any tokens; a baseline."
    paper = None
    needs = frozenset[str]()

    def score(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        """float64 [rows] from the generator alone."""
        return torch.rand(tokens.rows, generator=generator, dtype=torch.float64)
