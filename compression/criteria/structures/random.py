"""Random units: what any other criterion must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import CHANNELS, EXPERTS, PARTS, Units


@structure_criteria.register
class Random:
    """Uniform in [0, 1)."""

    name = "random"
    summary = "Any units; a baseline."
    paper = None
    needs = frozenset[str]()
    kinds = PARTS | EXPERTS | CHANNELS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units] from the generator alone."""
        return torch.rand(units.count, generator=generator, dtype=torch.float64)
