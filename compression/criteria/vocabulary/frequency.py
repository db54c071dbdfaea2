"""How often a token occurs in the calibration texts."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.tokens import Tokens
from compression.criteria.vocabulary import vocabulary_criteria


@vocabulary_criteria.register
class Frequency:
    """The count over all text of the calibration dataset (Abdaoui et al. 2020)."""

    name = "frequency"
    summary = "How often the token occurs in all text of the calibration dataset."
    paper = "2010.05609"
    needs = frozenset({"calibration"})

    def score(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        """float64 [rows], the counts. ValueError if nothing was counted."""
        if tokens.counts is None:
            raise ValueError("this criterion needs calibration data")
        return tokens.counts.to(torch.float64)
