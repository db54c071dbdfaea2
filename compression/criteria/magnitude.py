"""Magnitude: the absolute value of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics


@criteria.register
class Magnitude:
    """|W| (Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks)."""

    name = "magnitude"
    summary = "The smallest weights by absolute value go. Needs no data."
    paper = "1506.02626"
    needs = frozenset[str]()
    by_row = True

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """|W| in float32, [out, in]."""
        return weight.to(torch.float32).abs()
