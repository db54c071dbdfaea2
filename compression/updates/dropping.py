"""What an update of layers is, where others are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from compression.merging import Coefficients


class LayerUpdate(Protocol):
    """Changes the layers that stay."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]
    bases: ClassVar[int]
    """How many layers must stay before the first that goes, besides those that are kept as they are."""

    def coefficients(self, layers: int, rounds: Sequence[Sequence[int]]) -> Coefficients:
        """What layers that stay become when layers go, round after round (numbers of dense layers)."""
        ...
