"""Magnitude of all that a unit owns."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, over_slices
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


class Magnitude:
    """The sum of |w|^p over a unit's slices of each site, averaged over the sites that make or read it or
    scale it (group norm of Fang et al. 2023, arXiv:2301.12900, eq. 4, without sparse training)."""

    needs: frozenset[str] = frozenset()

    def __init__(self, power: int) -> None:
        self._power = power
        self.name = f"group-l{power}"
        self.summary = f"Sum of |w|^{power} over all weights of a unit, averaged over the tensors it lies in."

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        power = self._power
        parts = [over_slices(anatomy, site, lambda array: np.abs(array) ** power) for site in group.sites]
        mean: Scores = np.mean(parts, axis=0)
        return mean


CRITERIA.register(Magnitude(1))
CRITERIA.register(Magnitude(2))
