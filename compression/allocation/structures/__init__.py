"""How many units does each layer keep? One file an allocation."""

from __future__ import annotations

from compression.allocation.units import StructureAllocation
from compression.registry import Registry, discover

structure_allocations: Registry[StructureAllocation] = Registry("structure allocation")

discover(__name__, __path__)
