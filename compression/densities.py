"""How many weights of a site may go, and must go, by the densities that a job states. Exact, and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most weights that a site may lose."""

    least: int
    most: int


def site_bounds(units: int, minimum_density: float, maximum_density: float) -> Bounds:
    """Bounds of a site by densities; where whole numbers cannot meet both, the minimum density is met."""
    most = most_removable(units, minimum_density)
    return Bounds(min(least_removable(units, maximum_density), most), most)


def most_removable(size: int, minimum_density: float) -> int:
    """How many of `size` weights may go when `minimum_density` of them must stay."""
    keep = (Decimal(repr(minimum_density)) * size).to_integral_value(rounding=ROUND_CEILING)
    return size - int(keep)


def least_removable(size: int, maximum_density: float) -> int:
    """How many of `size` weights must go when at most `maximum_density` of them may stay."""
    keep = (Decimal(repr(maximum_density)) * size).to_integral_value(rounding=ROUND_FLOOR)
    return size - int(keep)
