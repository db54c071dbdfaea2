"""Random scores: the floor that every criterion has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics


@criteria.register
class Random:
    """Independent uniform scores in [0, 1)."""

    name = "random"
    summary = "Weights are removed at random, from the job's seed. A floor to compare with."
    paper = None
    needs = frozenset[str]()

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """Drawn on the CPU, so that a seed means the same on every device. Returns float32 [out, in]."""
        scores = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
        return scores.to(weight.device)
