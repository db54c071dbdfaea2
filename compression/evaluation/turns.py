"""Timing two things in turns, so that whatever else the machine does falls on both. No torch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST_ROUNDS = 5


def summarise(seconds: Sequence[float], tokens: int) -> dict[str, Any]:
    """Median, 10th and 90th percentile (seconds), repeats, and tokens a second at the median."""
    ordered = sorted(seconds)

    def percentile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    median = statistics.median(ordered)
    return {
        "median": median,
        "p10": percentile(0.1),
        "p90": percentile(0.9),
        "repeats": len(ordered),
        "tokens_per_second": tokens / median if median > 0 else None,
    }


def paired(dense: Sequence[float], pruned: Sequence[float]) -> dict[str, Any]:
    """Median over rounds of pruned / dense of the same round, and where it lies with 95% confidence.

    Both calls of a round meet the same machine, so what slows a round down cancels out; the range is that
    of the order statistics of the median (binomial, free of any distribution). Few rounds: the whole spread.
    """
    ratios = sorted(after / before for before, after in zip(dense, pruned, strict=True))
    count = len(ratios)
    reach = 0.98 * math.sqrt(count)
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[max(0, low)], ratios[min(count - 1, high)]],
    }


def interleave(
    first: Callable[[], None], second: Callable[[], None], repeats: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of each call of both, in turns; every other round begins with the second."""
    for _ in range(2):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    for number in range(repeats):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        order = ((0, first), (1, second)) if number % 2 == 0 else ((1, second), (0, first))
        for which, call in order:
            started = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - started)
    return times
