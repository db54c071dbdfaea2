"""What an update of low-rank factors is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor


class RankUpdate(Protocol):
    """Changes the factors of a weight."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def apply(self, weight: Tensor, down: Tensor, up: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """(down, up) float64 after the update. weight: [out, in], dense; down: [rank, in], up: [out, rank];
        moment: float32 [in, in], the sum of x x^T over its inputs in the model whose earlier blocks have
        their factors."""
        ...
