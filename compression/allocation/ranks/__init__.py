"""Which rank does each weight get? One file an allocation."""

from __future__ import annotations

from compression.allocation.spectra import RankAllocation
from compression.registry import Registry, discover

rank_allocations: Registry[RankAllocation] = Registry("rank allocation")

discover(__name__, __path__)
