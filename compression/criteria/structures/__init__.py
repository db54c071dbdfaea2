"""What is a neuron or a head worth? One file a criterion."""

from __future__ import annotations

from compression.criteria.units import StructureCriterion
from compression.registry import Registry, discover

structure_criteria: Registry[StructureCriterion] = Registry("structure criterion")

discover(__name__, __path__)
