"""What a criterion of low-rank replacements is."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.low_rank import Spectrum


class RankCriterion(Protocol):
    """Orders directions of a weight's outputs; those that are worth least are cut off."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """The directions of a weight [out, in], any float dtype, finite. `statistics`: given when `needs` (of
        `criteria.base.NEEDS`) is not empty; `site`: its name, for messages; `generator`: a CPU generator,
        seeded for this weight."""
        ...
