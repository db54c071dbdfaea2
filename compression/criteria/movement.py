"""Movement: weights that a step of learning would move away from zero stay."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, needed


@criteria.register
class Movement:
    """-w * E[g], shifted to begin at 0 (Sanh et al. 2020, Movement Pruning, equation 3, with one step of
    learning on the calibration data in place of a whole fine-tuning).

    The paper sums this over a fine-tuning, during which weights travel; at the trained weights themselves
    E[g] is small and mostly noise, so expect little of it without one.
    """

    name = "movement"
    summary = "Weights whose gradient pulls them towards zero go; the first step of movement pruning."
    paper = "2005.07683"
    needs = frozenset({"gradient.mean"})

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]; the smallest is 0."""
        moves = -weight.to(torch.float32) * needed(statistics, "gradient.mean", weight.device)
        return moves - moves.min()
