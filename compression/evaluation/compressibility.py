"""How compressible a weight is by its values alone: the PQ index (Diao et al. 2023, arXiv 2302.05601)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, float64

P, Q = 1.0, 2.0
"""The norms of the index as reports have it, one of the two pairs of the paper's experiments."""

CHUNK = 1 << 20


@dataclass(frozen=True)
class Spread:
    """How the magnitudes of a vector spread. `count`: its d elements; `index`: I, None for a vector of
    zeros; `removable`: how many of them may go by the paper's bound."""

    count: int
    index: float | None
    removable: int

    def to_json(self) -> dict[str, Any]:
        """As the report has it."""
        return {"count": self.count, "index": self.index, "removable": self.removable}


def spread(weight: Tensor, *, kept_only: bool = False, p: float = P, q: float = Q) -> Spread:
    """The PQ index of a weight of any shape and float dtype, and the bound on what may go.

    I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q for 0 < p <= 1 <= q, p < q: 0 if all magnitudes are equal,
    1 - d^(1/q - 1/p) if one element has it all, unchanged by scale. With `kept_only`, w are the elements that
    are not zero, as the paper has it of a network that is pruned already.

    The bound: let the r largest elements stay, and let those that go have at most eta times the sum of |w|^p
    of those that stay. By Hoelder's inequality ||w||_p^p <= (1 + eta) r^(1 - p/q) ||w||_q^p, and so
    r >= d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p)). `removable` is d - ceil of that for eta = 0: what the
    paper prunes in one round before it trains again (SAP). More cannot go without loss in that sum; that so
    many can is not said. Sums in float64, about a million elements at a time.

    Raises ValueError for other p and q.
    """
    if not (0 < p <= 1 <= q and p < q):
        raise ValueError(f"the PQ index needs 0 < p <= 1 <= q and p < q, not p = {p} and q = {q}")
    top = max((float(part.abs().max()) for part in _parts(weight)), default=0.0)
    sums, kept = [0.0, 0.0], 0
    for part in _parts(weight) if top > 0 else ():
        kept += int(part.count_nonzero())
        # Divided by the largest, so that no power overflows.
        sizes = part.to(float64).abs() / top
        for place, power in enumerate((p, q)):
            sums[place] += float(sizes.pow(power).sum())
    count = kept if kept_only else weight.numel()
    if not top > 0:
        return Spread(count, None, 0)
    return Spread(count, *index_and_bound(count, sums[0], sums[1], p, q))


def index_and_bound(count: int, sum_p: float, sum_q: float, p: float, q: float) -> tuple[float, int]:
    """(I, d - ceil(r)) of d = `count` elements with sum |w|^p and sum |w|^q; see `spread`."""
    ratio = count ** (1 / q - 1 / p) * sum_p ** (1 / p) / sum_q ** (1 / q)
    ratio = min(1.0, ratio)  # rounding may lift equal magnitudes above it
    needed = count * ratio ** (p * q / (q - p))
    return 1 - ratio, count - min(count, math.ceil(needed * (1 - 1e-12)))


def _parts(weight: Tensor) -> Iterator[Tensor]:
    """The elements, some rows at a time."""
    rows = max(1, CHUNK // max(1, weight[:1].numel()))
    for start in range(0, weight.shape[0] if weight.numel() else 0, rows):
        yield weight[start : start + rows]
