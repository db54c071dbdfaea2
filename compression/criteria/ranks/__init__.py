"""Which directions of a weight stay? One file a criterion."""

from __future__ import annotations

from compression.criteria.spectra import RankCriterion
from compression.registry import Registry, discover

rank_criteria: Registry[RankCriterion] = Registry("rank criterion")

discover(__name__, __path__)
