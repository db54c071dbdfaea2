"""Units at random: the baseline that every criterion must beat."""

from __future__ import annotations

import zlib

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class Random:
    """Uniform numbers, drawn anew for each group from the seed and the group's name."""

    name = "random"
    summary = "Random scores."
    needs: frozenset[str] = frozenset()

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return np.random.default_rng([seed, zlib.crc32(group.name.encode())]).random(group.units)
