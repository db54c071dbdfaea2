"""Wanda: weight times the norm of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics


@criteria.register
class Wanda:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language
    Models).
    """

    name = "wanda"
    summary = "Weight magnitude times the norm of the input it multiplies, measured on calibration data."
    paper = "2306.11695"
    needs = frozenset({"activations"})
    by_row = True

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """|W| [out, in] times the input norms [in], in float32. ValueError without statistics."""
        if statistics is None:
            raise ValueError("Wanda needs the norms of the inputs")
        return weight.to(torch.float32).abs().mul_(statistics.column_norms.to(weight.device, torch.float32))
