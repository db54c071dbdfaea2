"""Whole layers: a run of consecutive blocks goes, the rest is renumbered."""

from __future__ import annotations

from collections.abc import Sequence

from compression.errors import TargetUnreachable
from compression.granularity import granularities


@granularities.register
class Layer:
    """Consecutive transformer blocks; the result is an ordinary checkpoint with fewer of them."""

    name = "layer"
    summary = "Whole consecutive layers. Smaller and faster everywhere; no special runtime."
    pattern = "^layer$"


def candidate_starts(layers: int, remove: int, keep_first: int, keep_last: int) -> range:
    """First layers of the runs of `remove` layers that spare the first `keep_first` and the last `keep_last`.

    Raises TargetUnreachable, with what would be possible, when there is none.
    """
    free = layers - keep_first - keep_last
    if remove < 1 or remove > free:
        raise TargetUnreachable(
            f"{remove} of {layers} layers cannot be dropped while the first {keep_first} and the last "
            f"{keep_last} are kept: at most {max(0, free)} can; lower options.keep_first or "
            "options.keep_last, or the target"
        )
    return range(keep_first, layers - keep_last - remove + 1)


def kept_layers(layers: int, start: int, remove: int) -> list[int]:
    """Source layers that stay when `remove` layers from `start` on go."""
    return [index for index in range(layers) if not start <= index < start + remove]


def best_start(distances: Sequence[float], starts: range) -> int:
    """The start with the smallest distance; the first of equals."""
    return min(starts, key=lambda start: (distances[start - starts.start], start))
