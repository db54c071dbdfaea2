"""GBLM: Wanda plus the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, needed
from compression.parameters import parameter


@criteria.register
@dataclass(frozen=True)
class Gblm:
    """|W| * (||X_j||_2 + a * c * G) with G the root mean square gradient over sequences (Das et al. 2023,
    Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models, equation 5).

    The paper multiplies gradients by 100, which suits the scale of one family; here c = mean(||X||) /
    mean(G), so that a weighs two terms of equal size in any model.
    """

    name: ClassVar[str] = "gblm"
    summary: ClassVar[str] = "Wanda plus weight times gradient, both brought to the same scale."
    paper: ClassVar[str | None] = "2311.04902"
    needs: ClassVar[frozenset[str]] = frozenset({"activations", "gradient.square"})

    gblm_alpha: float = parameter(1.0, "GBLM: weight of the gradient term.", ge=0.0, le=1000.0)

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]. Without any gradient (all zero) this is Wanda."""
        norms = needed(statistics, "activations", weight.device)
        gradient = needed(statistics, "gradient.square", weight.device).sqrt()
        mean = gradient.mean()
        if float(mean) > 0:
            gradient = gradient * (norms.mean() / mean)
        return weight.to(torch.float32).abs() * (norms + self.gblm_alpha * gradient)
