"""No update: layers that stay keep their values, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from compression.merging import Coefficients
from compression.updates.layers import layer_updates


@layer_updates.register
class NoLayerUpdate:
    """The layers that stay, as they are."""

    name = "none"
    summary = "Layers that stay keep their values, bit for bit."
    paper = None
    needs = frozenset[str]()
    bases = 0

    def coefficients(self, layers: int, rounds: Sequence[Sequence[int]]) -> Coefficients:
        """Nothing changes."""
        return {}
