"""RIA: importance relative to the row and the column of a weight, times the input norm."""

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
class Ria:
    """(|W_ij| / sum_k |W_ik| + |W_ij| / sum_k |W_kj|) * ||X_j||_2^a (Zhang et al. 2024, Plug-and-Play: An
    Efficient Post-training Pruning Method for Large Language Models, equation 4).
    """

    name: ClassVar[str] = "ria"
    summary: ClassVar[str] = "Magnitude relative to its row and its column, times a power of the input norm."
    paper: ClassVar[str | None] = "2402.15017"
    needs: ClassVar[frozenset[str]] = frozenset({"activations"})

    ria_power: float = parameter(0.5, "RIA: power of the input norm.", ge=0.0, le=4.0)

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]. A row or a column of zeros counts as nothing."""
        norms = needed(statistics, "activations", weight.device)
        size = weight.to(torch.float32).abs()
        tiny = torch.finfo(torch.float32).tiny
        rows = size.sum(1, keepdim=True).clamp_min(tiny)
        columns = size.sum(0, keepdim=True).clamp_min(tiny)
        return (size / rows + size / columns) * norms.pow(self.ria_power)
