"""The diagonal of the Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, needed


@criteria.register
class Fisher:
    """w^2 * E[g^2] / 2, the second-order cost of removal with the empirical Fisher diagonal for the Hessian
    (Theis et al. 2018, Faster Gaze Prediction with Dense Networks and Fisher Pruning, equation 7).
    """

    name = "fisher"
    summary = "Squared weight times the mean squared gradient: the second-order cost of removal."
    paper = "1801.05787"
    needs = frozenset({"gradient.square"})

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]."""
        return weight.to(torch.float32).square() * needed(statistics, "gradient.square", weight.device) / 2
