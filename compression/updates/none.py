"""No update: weights that stay keep their values, bit for bit."""

from __future__ import annotations

from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.updates import updates


@updates.register
class NoUpdate:
    """W * mask, without touching a bit of what stays."""

    name = "none"
    summary = "Weights that stay keep their values, bit for bit."
    needs = frozenset[str]()

    def apply(self, weight: Tensor, mask: Tensor, statistics: SiteStatistics | None) -> Tensor:
        """Zero where the mask is False, else the weight itself. Same shape and dtype."""
        return weight.masked_fill(~mask, 0.0)
