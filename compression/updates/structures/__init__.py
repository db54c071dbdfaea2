"""What happens to the weights that read the units that stay, or to experts that stay. One file an update."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.updates.units import ExpertUpdate, StructureUpdate

structure_updates: Registry[StructureUpdate | ExpertUpdate] = Registry("structure update")

discover(__name__, __path__)
