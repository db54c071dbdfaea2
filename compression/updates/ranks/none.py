"""No update: factors stay as the directions give them."""

from __future__ import annotations

from torch import Tensor

from compression.updates.ranks import rank_updates


@rank_updates.register
class NoRankUpdate:
    """The factors, as they are."""

    name = "none"
    summary = "Factors stay as the directions give them."
    paper = None
    needs = frozenset[str]()

    def apply(self, weight: Tensor, down: Tensor, up: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """The factors themselves."""
        return down, up
