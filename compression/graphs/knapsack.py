"""One option of every item, so that enough is saved and least is lost: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STATES = 4096
"""Partial choices that are followed at once."""

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def least_lost(
    lost: Sequence[Floats], saved: Sequence[Floats], needed: float, states: int = STATES
) -> list[int] | None:
    """By item, the place of its option, so that at least `needed` is saved and the sum of what is lost is
    least; None where all that can be saved is less.

    `lost` and `saved` have, for every item, float64 [options]. Solved by dynamic programming over the partial
    choices that no other beats in both sums (Nemhauser and Ullmann 1969). That is exact as long as there
    are at most `states` of them; beyond that one is followed for each of so many equal parts of what is to
    be saved: the choice still saves enough, and may lose a little more than the best.
    """
    reached, paid = np.zeros(1), np.zeros(1)
    steps: list[tuple[Places, Places]] = []
    for worth, save in zip(lost, saved, strict=True):
        together = np.minimum(reached[:, None] + save[None, :], needed).ravel()
        price = (paid[:, None] + worth[None, :]).ravel()
        kept = _unbeaten(together, price)
        if len(kept) > states:
            kept = _thinned(kept, together, states)
        steps.append((kept // len(save), kept % len(save)))
        reached, paid = together[kept], price[kept]
    if reached.max() < needed - 1e-9 * abs(needed):
        return None
    state = int(np.argmax(reached))
    found = []
    for before, option in reversed(steps):
        found.append(int(option[state]))
        state = int(before[state])
    return found[::-1]


def _unbeaten(saved: Floats, lost: Floats) -> Places:
    """The places of what nothing else beats in both sums, by what is saved, most first."""
    order = np.lexsort((lost, -saved))
    best = np.minimum.accumulate(lost[order])
    better = np.ones(len(order), dtype=np.bool_)
    better[1:] = lost[order][1:] < best[:-1]
    found: Places = order[better]
    return found


def _thinned(kept: Places, saved: Floats, states: int) -> Places:
    """The one that saves most, and of each of `states` equal parts the one that loses least."""
    low, high = float(saved[kept].min()), float(saved[kept].max())
    part = np.floor((saved[kept] - low) / max(high - low, np.finfo(np.float64).tiny) * (states - 1))
    last = np.ones(len(kept), dtype=np.bool_)
    last[:-1] = part[1:] != part[:-1]
    last[0] = True
    found: Places = kept[last]
    return found
