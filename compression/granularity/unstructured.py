"""Single weights, compared within each row (output) or over the whole weight."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.granularity import granularities
from compression.granularity.base import ZERO_SCORE, row_slices, smallest


@granularities.register
class Unstructured:
    """Any weight may go; the result is dense tensors with exact zeros."""

    name = "unstructured"
    summary = "Single weights anywhere. Smaller only where zeros are stored or skipped."
    pattern = "^unstructured$"


def row_quotas(remove: int, rows: int, columns: int, zeros: Tensor) -> Tensor:
    """How many weights each row loses: int64 [rows], sum exactly `remove` (or all zeros, if they are more).

    Rows differ by at most one, except that a row which already has more zeros than its share gives all of
    them and the other rows share the rest. `zeros`: int64 [rows], zeros that each row already has.
    """
    if not 0 <= remove <= rows * columns:
        raise ValueError(f"cannot remove {remove} of {rows * columns} weights")
    if int(zeros.sum()) >= remove:
        return zeros.clone()
    quotas = torch.zeros(rows, dtype=torch.int64)
    free = torch.ones(rows, dtype=torch.bool)
    left = remove
    while True:
        places = free.nonzero().flatten()
        count = len(places)
        steps = torch.arange(count + 1, dtype=torch.int64) * left // count
        share = steps[1:] - steps[:-1]
        full = zeros[places] > share
        if not bool(full.any()):
            quotas[places] = share
            return quotas
        fixed = places[full]
        quotas[fixed] = zeros[fixed]
        left -= int(zeros[fixed].sum())
        free[fixed] = False


def unstructured_mask(scores: Tensor, remove: int, comparison: str = "row") -> Tensor:
    """Keep-mask bool [out, in] that removes exactly `remove` weights, the smallest scores first.

    scores: float32 [out, in]; entries equal to ZERO_SCORE are weights that are already zero. They go first,
    and
    all of them go, even when they are more than `remove`. comparison "row": every row loses the same number
    (within one); "layer": the smallest of the whole weight go. Ties go by position, first row and column
    first.
    """
    rows, columns = scores.shape
    zeros = torch.zeros(rows, dtype=torch.int64)
    if scores.numel() and float(scores.min()) < 0:
        zeros = (scores == ZERO_SCORE).sum(1)
    if comparison == "layer":
        count = torch.tensor([max(remove, int(zeros.sum()))])
        return ~smallest(scores.reshape(1, -1), count.to(scores.device)).reshape(rows, columns)
    if comparison != "row":
        raise ValueError(f"comparison {comparison!r} is neither 'row' nor 'layer'")
    quotas = row_quotas(remove, rows, columns, zeros.cpu()).to(scores.device)
    return ~torch.cat([smallest(scores[part], quotas[part]) for part in row_slices(scores)])
