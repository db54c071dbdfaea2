"""Singular values of the weight itself."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.criteria.ranks import rank_criteria
from compression.low_rank import Spectrum, spectrum


@rank_criteria.register
class RankMagnitude:
    """The best approximation of the weight in the Frobenius norm (Eckart and Young 1936)."""

    name = "magnitude"
    summary = "Singular values of the weight itself, whatever its inputs are."
    paper = None
    needs = frozenset[str]()

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """See `RankCriterion`."""
        return spectrum(weight)
