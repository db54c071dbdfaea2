"""What happens to the weights that read the units that stay. One file an update."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.updates.units import StructureUpdate

structure_updates: Registry[StructureUpdate] = Registry("structure update")

discover(__name__, __path__)
