"""What do layers do? One file a criterion: what it costs to be without some of them."""

from __future__ import annotations

from compression.criteria.dropping import LayerCriterion
from compression.registry import Registry, discover

layer_criteria: Registry[LayerCriterion] = Registry("layer criterion")

discover(__name__, __path__)
