"""CFSP's coarse step: layers that turn the hidden states more keep more."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_share
from compression.parameters import parameter


@structure_allocations.register
@dataclass(frozen=True)
class Influence:
    """Layer i keeps a share proportional to 1 / (1 + exp(-a z_i)), z_i being its influence, standardised over
    the layers (Wang et al. 2024, CFSP, section 3.2: block importance through a sigmoid; its saliency is the
    distance between what enters and leaves a block)."""

    name: ClassVar[str] = "influence"
    summary: ClassVar[str] = "Layers that turn the hidden states more keep more of their units."
    paper: ClassVar[str | None] = "2409.13199"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.influence"})

    influence_slope: float = parameter(
        1.0, "Influence: how steeply the share follows a layer's influence.", ge=0.0, le=20.0
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        found = list(evidence.influence())
        mean, spread = statistics.fmean(found), statistics.pstdev(found) or 1.0
        shares = [1 / (1 + math.exp(-self.influence_slope * (value - mean) / spread)) for value in found]
        return by_share(evidence, {group.name: shares[group.layer] for group in evidence.groups}, budget)
