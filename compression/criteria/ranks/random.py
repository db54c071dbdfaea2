"""Directions by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.criteria.ranks import rank_criteria
from compression.low_rank import Spectrum


@rank_criteria.register
class RankRandom:
    """The weight projected onto directions of a normal matrix, each of the same value."""

    name = "random"
    summary = "Random directions of the outputs. A baseline, not a method."
    paper = None
    needs = frozenset[str]()

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """See `RankCriterion`."""
        rows, count = weight.shape[0], min(weight.shape)
        drawn = torch.randn(rows, count, generator=generator, dtype=torch.float64)
        left = torch.linalg.qr(drawn).Q.to(weight.device)
        return Spectrum(left, torch.ones(count, dtype=torch.float64, device=weight.device))
