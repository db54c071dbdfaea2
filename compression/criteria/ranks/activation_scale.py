"""ASVD: singular values of the weight whose columns are scaled by how large their inputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics, needed
from compression.criteria.ranks import rank_criteria
from compression.low_rank import Spectrum, spectrum
from compression.parameters import parameter


@rank_criteria.register
@dataclass(frozen=True)
class ActivationScale:
    """Values are singular values of W S, S diagonal with the mean magnitude of each input to a power (Yuan et
    al. 2023, ASVD, section 3.2: a half)."""

    name: ClassVar[str] = "activation-scale"
    summary: ClassVar[str] = (
        "Singular values of the weight, each column times a power of its input's mean size."
    )
    paper: ClassVar[str | None] = "2312.05821"
    needs: ClassVar[frozenset[str]] = frozenset({"magnitudes"})

    scale_power: float = parameter(0.5, "Power of the mean magnitude of inputs.", ge=0.0, le=2.0)

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """See `RankCriterion`."""
        scale = needed(statistics, "magnitudes", weight.device).to(torch.float64) ** self.scale_power
        return spectrum(weight, scale)
