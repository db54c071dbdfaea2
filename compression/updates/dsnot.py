"""DSnoT: weights change places so that outputs keep their mean; no value changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria.base import needed
from compression.parameters import parameter
from compression.updates import updates
from compression.updates.base import Cut, Task


@updates.register
@dataclass(frozen=True)
class DSnoT:
    """Dynamic sparse no training (Zhang et al. 2023, sections 3.2 and 3.3), all rows at once.

    The expected error of an output is e = sum of w E[x] over its removed weights. In a cycle, a row takes
    back the removed weight with the largest sign(e) w E[x] / Var[x], and then removes the kept weight with
    the smallest |w| ||x|| among those whose removal moves the new e towards 0. A weight moves once at most.
    Weights have their dense values under the new mask, whatever the incoming cut made of them.

    Differences from the paper and its code: a pair that would not lower both |e| and the expected squared
    error e^2 + sum of w^2 Var[x] over the removed weights (of independent inputs) is not swapped, the weight
    that would have come back is passed over. Without that, inputs of small mean and large variance are lost
    for the mean's sake: on models with RMS norms the result was worse than magnitude pruning. Also, the
    direction of a removal is that of the error after the weight came back, which may have passed 0; for n:m
    the removed weight is of the same group and moves e the right way too; and the threshold is relative. A
    row is done when |e| is below `dsnot_threshold` times the standard deviation of what it lost, sqrt(sum of
    w^2 Var[x]) over its removed weights with independent inputs: by default where the mean has less than
    half of the squared error. This does not depend on the length of sequences, as the paper's sums over
    tokens do.

    Masks of whole blocks of weights leave as they came, for single weights cannot move in them: the cut is
    returned as it is.
    """

    name: ClassVar[str] = "dsnot"
    summary: ClassVar[str] = (
        "Swaps removed for kept weights until outputs keep their mean. Values do not change."
    )
    paper: ClassVar[str | None] = "2310.08915"
    needs: ClassVar[frozenset[str]] = frozenset({"activations", "means"})
    starts_over: ClassVar[bool] = False

    dsnot_cycles: int = parameter(50, "Swaps that are tried in every row.", ge=1, le=10000)
    dsnot_threshold: float = parameter(
        1.0, "Mean error at which a row is done, relative to the spread of what it lost.", ge=0.0, le=1000.0
    )

    def apply(self, task: Task, cut: Cut) -> Cut:
        """Another mask with the same counts (by row, and by group for n:m) and the dense values under it."""
        if task.rule.pattern.kind == "block":
            return cut
        group = task.rule.pattern.group if task.rule.pattern.kind == "n:m" else 0
        swaps = _Swaps(task, cut.mask, group)
        for _ in range(self.dsnot_cycles):
            if not swaps.cycle(self.dsnot_threshold):
                break
        return Cut(torch.where(swaps.mask, task.dense, 0.0), swaps.mask, cut.bias)


class _Swaps:
    """The state of the rows. `gain`: w E[x], float32 [out, in]; `error`: e and `spread`: variance of what is
    removed, float32 [out]; `movable`: bool [out, in], weights that have not been tried; `going`: int64, rows
    that are not done.
    """

    def __init__(self, task: Task, mask: Tensor, group: int) -> None:
        assert task.statistics is not None
        device = task.dense.device
        means = needed(task.statistics, "means", device)
        norms = needed(task.statistics, "activations", device)
        squares = norms.square() / max(1, task.statistics.tokens)
        # A constant input has a variance of 0, and any sign by rounding.
        variance = torch.maximum(squares - means.square(), squares * 1e-6)
        self.group = group
        self.mask = mask.clone()
        self.gain = task.dense * means
        self.growth = self.gain / torch.where(variance > 0, variance, 1.0)
        self.cost = task.dense.abs() * norms
        self.variances = task.dense.square() * variance
        self.error = (self.gain * ~mask).sum(1)
        self.spread = (self.variances * ~mask).sum(1)
        self.movable = torch.ones_like(mask)
        self.going = torch.arange(task.dense.shape[0], device=device)

    def cycle(self, threshold: float) -> bool:
        """Tries one swap in every row that is not done; whether any row is left."""
        rows = self.going
        rows = rows[self.error[rows].abs() > threshold * self.spread[rows].clamp_min(0.0).sqrt()]
        error = self.error[rows]
        mask, gain = self.mask[rows], self.gain[rows]
        back = (self.growth[rows] * error.sign().unsqueeze(1)).masked_fill_(mask | ~self.movable[rows], 0.0)
        best, column = back.max(1)
        able = best > 0
        rows, error, column, mask, gain = rows[able], error[able], column[able], mask[able], gain[able]
        self.going = rows
        if len(rows) == 0:
            return False
        grown = gain.gather(1, column.unsqueeze(1)).squeeze(1)
        after = error - grown
        cost = self.cost[rows].masked_fill_(self._refused(rows, column, mask, gain, after), torch.inf)
        cheapest, gone = cost.min(1)
        change = gain.gather(1, gone.unsqueeze(1)).squeeze(1)
        swap = torch.isfinite(cheapest) & ((after + change).abs() < error.abs())
        gone_variance = self.variances[rows].gather(1, gone.unsqueeze(1)).squeeze(1)
        more = gone_variance - self.variances[rows].gather(1, column.unsqueeze(1)).squeeze(1)
        swap &= (after + change).square() + more < error.square()
        self.movable[rows, column] = False
        rows, column, gone = rows[swap], column[swap], gone[swap]
        self.movable[rows, gone] = False
        self.mask[rows, column] = True
        self.mask[rows, gone] = False
        self.error[rows] = (after + change)[swap]
        self.spread[rows] += self.variances[rows, gone] - self.variances[rows, column]
        return True

    def _refused(self, rows: Tensor, column: Tensor, mask: Tensor, gain: Tensor, after: Tensor) -> Tensor:
        """Bool [rows, in]: weights that cannot go for the one in `column`: those that are removed, have
        moved, move the error away from 0, or are of another group.
        """
        refused = ~mask | ~self.movable[rows] | (gain * after.sign().unsqueeze(1) >= 0)
        if self.group:
            groups = torch.arange(mask.shape[1], device=mask.device) // self.group
            refused |= groups != (column // self.group).unsqueeze(1)
        return refused
