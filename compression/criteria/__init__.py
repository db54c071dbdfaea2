"""Importance scores: what is a weight worth? One file a criterion."""

from __future__ import annotations

from compression.criteria.base import WeightCriterion
from compression.registry import Registry, discover

criteria: Registry[WeightCriterion] = Registry("criterion")

discover(__name__, __path__)
