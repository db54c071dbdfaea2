"""What happens to the weights that stay. One file an update."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.updates.base import Update

updates: Registry[Update] = Registry("update")

discover(__name__, __path__)
