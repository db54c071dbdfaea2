"""What every allocation is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

ScoreStream = Callable[[], "Iterator[tuple[str, Tensor]]"]
"""Gives, each time it is called, every site with its scores (any shape, float32; below zero: already
zero).
"""


class Allocation(Protocol):
    """Gives each site its number of weights to remove."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_scores: ClassVar[bool]

    def allocate(
        self,
        sizes: Mapping[str, int],
        score_stream: ScoreStream | None,
        remove_total: int,
        minimum_density: float,
    ) -> dict[str, int]:
        """How many weights each site loses; the sum is exactly `remove_total`.

        sizes: elements of each site, in the model's order; score_stream: given when `needs_scores`;
        minimum_density: fraction of each site that stays whatever happens. TargetUnreachable if that leaves
        too little to remove.
        """
        ...


def most_removable(size: int, minimum_density: float) -> int:
    """How many of `size` weights may go when `minimum_density` of them must stay."""
    keep = (Decimal(repr(minimum_density)) * size).to_integral_value(rounding=ROUND_CEILING)
    return size - int(keep)
