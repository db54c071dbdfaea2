"""When units of a graph go: at once, or while the graph is trained. One file a schedule."""

from __future__ import annotations

from compression.graphs import schedules
from compression.graphs.schedules.base import SCHEDULES, GraphSchedule, Outcome, Settings, Work
from compression.registry import discover

discover(schedules.__name__, schedules.__path__)

__all__ = ["SCHEDULES", "GraphSchedule", "Outcome", "Settings", "Work"]
