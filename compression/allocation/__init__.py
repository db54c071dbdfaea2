"""How the budget spreads over the weights: how many each of them loses. One file an allocation."""

from __future__ import annotations

from compression.allocation.base import Allocation
from compression.registry import Registry, discover

allocations: Registry[Allocation] = Registry("allocation")

discover(__name__, __path__)
