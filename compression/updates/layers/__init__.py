"""What happens to the layers that stay when others are dropped? One file an update."""

from __future__ import annotations

from compression.registry import Registry, discover
from compression.updates.dropping import LayerUpdate

layer_updates: Registry[LayerUpdate] = Registry("layer update")

discover(__name__, __path__)
