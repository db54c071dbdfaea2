"""When weights are removed. One file a schedule."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.schedules.base import Schedule

schedules: Registry[Schedule] = Registry("schedule")

discover(__name__, __path__)
