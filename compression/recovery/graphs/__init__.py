"""How the quality of a cut graph is bought back; one file a method."""

from __future__ import annotations

from compression.recovery.graphs.base import GraphRecovery
from compression.registry import Registry, discover

graph_recoveries: Registry[GraphRecovery] = Registry("recovery of graphs")

discover(__name__, __path__)
