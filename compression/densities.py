"""How many weights of a site may go, and must go, by the densities that a job states. Exact, and no torch."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def most_removable(size: int, minimum_density: float) -> int:
    """How many of `size` weights may go when `minimum_density` of them must stay."""
    keep = (Decimal(repr(minimum_density)) * size).to_integral_value(rounding=ROUND_CEILING)
    return size - int(keep)


def least_removable(size: int, maximum_density: float) -> int:
    """How many of `size` weights must go when at most `maximum_density` of them may stay."""
    keep = (Decimal(repr(maximum_density)) * size).to_integral_value(rounding=ROUND_FLOOR)
    return size - int(keep)
