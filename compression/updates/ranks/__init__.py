"""What happens to the factors of a weight? One file an update."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.updates.factors import RankUpdate

rank_updates: Registry[RankUpdate] = Registry("rank update")

discover(__name__, __path__)
