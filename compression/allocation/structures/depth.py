"""SEAP's distribution over depth: later layers lose more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_share
from compression.parameters import parameter


@structure_allocations.register
@dataclass(frozen=True)
class Depth:
    """Layer i of L keeps a share proportional to 1 - r / (1 + exp(-a (i / (L - 1) - 1/2))); the first and the
    last layers keep all if they can (Liang et al. 2025, SEAP, section 3.3: a logistic curve over depth)."""

    name: ClassVar[str] = "depth"
    summary: ClassVar[str] = "Later layers keep less, along a logistic curve; both ends are spared."
    paper: ClassVar[str | None] = "2503.07605"
    needs: ClassVar[frozenset[str]] = frozenset()

    depth_reach: float = parameter(0.5, "Depth: how much less the last layers keep.", ge=0.0, le=0.95)
    depth_slope: float = parameter(6.0, "Depth: how steep the curve is.", ge=0.0, le=50.0)
    depth_spared: int = parameter(1, "Depth: so many layers at either end keep all.", ge=0, le=64)

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        layers = 1 + max(group.layer for group in evidence.groups)
        shares = {}
        for group in evidence.groups:
            at = group.layer / max(1, layers - 1) - 0.5
            share = 1 - self.depth_reach / (1 + math.exp(-self.depth_slope * at))
            spared = min(group.layer, layers - 1 - group.layer) < self.depth_spared
            shares[group.name] = 1e3 if spared else share
        return by_share(evidence, shares, budget)
