"""Importance scores: what is a weight, or a layer, worth? One file a criterion."""

from __future__ import annotations

from compression.criteria.base import LayerCriterion, WeightCriterion
from compression.registry import Registry, discover

criteria: Registry[WeightCriterion] = Registry("criterion")
layer_criteria: Registry[LayerCriterion] = Registry("layer criterion")

discover(__name__, __path__)
