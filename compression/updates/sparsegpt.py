"""SparseGPT: columns are decided from left to right, what is lost goes into the columns that follow."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.granularity.base import ZERO_SCORE, smallest
from compression.granularity.blocks import block_scores
from compression.granularity.n_m import n_m_mask
from compression.granularity.rule import Rule
from compression.granularity.unstructured import row_quotas
from compression.parameters import parameter
from compression.updates import updates
from compression.updates.base import Cut, Task
from compression.updates.quadratic import damped_factor, damping_parameter, hessian_of

LEAF = 8


@updates.register
@dataclass(frozen=True)
class SparseGPT:
    """Optimal brain surgeon in column order with a shared inverse (Frantar & Alistarh 2023, algorithm 1).

    Starts from the dense weight; of the incoming cut only the mask is used, and only if `adaptive_mask` is
    off.

    The same numbers as the reference's, computed from the factor H + damping = U U^T instead of the factor of
    the inverse: with D = W - W', a kept weight of column i has D_i = -(sum over k < i of D_k U_ki) / U_ii and
    a removed one has D_i = W_i. So nothing is inverted, a block needs one product with all columns before it,
    and inside a block the triangle is halved down to LEAF columns with products in between.

    Differences from the reference: counts are exact (the reference cuts at a threshold in every block);
    weights that are zero go first; inputs that are always zero cost nothing to remove and are not zeroed
    otherwise; comparison "row" gives every row its share of every block. Where n:m or a block keeps a weight
    that was zero, it takes part and may become different from zero.
    """

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = (
        "Chooses weights column by column and lets those that stay make up for what is lost."
    )
    paper: ClassVar[str | None] = "2301.00774"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    damping: float = damping_parameter()
    block_size: int = parameter(
        128, "Columns whose mask is chosen at once; rounded up to whole groups.", ge=1, le=4096
    )
    adaptive_mask: bool = parameter(
        True, "Whether weights are chosen on the way. If not, the mask of the step before is kept."
    )

    @property
    def starts_over(self) -> bool:
        """Chosen on the way, the mask owes nothing to the criterion."""
        return self.adaptive_mask

    def apply(self, task: Task, cut: Cut) -> Cut:
        """A new weight and, with `adaptive_mask`, a new mask. HessianSingular if the factorisation fails."""
        hessian = hessian_of(task)
        lower, scale = damped_factor(hessian, self.damping, task.site)
        scale = scale.masked_fill(hessian.diagonal() == 0, 0.0)
        given = None if self.adaptive_mask else cut.mask
        weight, mask = _Sweep(task, given, lower, scale, self.block_size).run()
        return Cut(weight, mask, cut.bias)


class _Sweep:
    """The pass over the columns. Working matrices are [in, out], so that a column of the weight is
    contiguous.

    `lower`: float32 [in, in], U^T with every row divided by its diagonal; `scale`: float32 [in], U_ii, 0 for
    dead inputs; `delta`: D = W - W' of the columns that are done. Of the block being worked on: `dense`,
    `kept`, and `shift`, -(sum over k of D_k U_ki) / U_ii, which is the D_i of a weight that is kept.
    """

    def __init__(self, task: Task, given: Tensor | None, lower: Tensor, scale: Tensor, block: int) -> None:
        self.rule = task.rule
        self.weight = task.dense
        self.given = given
        self.lower = lower
        self.scale = scale.unsqueeze(1)
        self.delta = torch.empty_like(task.dense.T, memory_format=torch.contiguous_format)
        self.grouped = given is None and self.rule.pattern.kind == "n:m"
        self.leaf = self.rule.window() if self.grouped else LEAF
        unit = self.rule.window()
        size = -(-block // unit) * unit
        self.edges = [*range(0, task.dense.shape[1], size), task.dense.shape[1]]

    def run(self) -> tuple[Tensor, Tensor]:
        """Works through all blocks; the new weight float32 [out, in] and its keep-mask bool [out, in]."""
        weight = torch.empty_like(self.weight)
        mask = torch.ones_like(self.weight, dtype=torch.bool) if self.given is None else self.given.clone()
        chooses = self.given is None and not self.grouped
        quotas = _quotas(self.rule, self.weight, self.edges) if chooses else None
        for number, (start, stop) in enumerate(_pairs(self.edges)):
            part = slice(start, stop)
            self.start = start
            self.dense = _turned(self.weight[:, part])
            self.shift = torch.mm(self.lower[part, :start], self.delta[:start]).neg_()
            if quotas is not None:
                mask[:, part] = self._choose(quotas[:, number])
            self.kept = _turned(mask[:, part])
            self._eliminate(0, stop - start)
            values = torch.where(self.kept, self.dense - self.delta[part], 0.0)
            weight[:, part] = _turned(values)
            if self.grouped:
                mask[:, part] = _turned(self.kept)
        return weight, mask

    def _scores(self, low: int, high: int) -> Tensor:
        """w^2 / [U^-1]_ii^2 with the values that columns of the block have now: float32 [out, n]; zeros
        first.
        """
        part = slice(self.start + low, self.start + high)
        triangle = self.lower[part, part]
        moved: Tensor = torch.linalg.solve_triangular(
            triangle, self.shift[low:high], upper=False, unitriangular=True
        )
        scores: Tensor = (self.dense[low:high] - moved).mul_(self.scale[part]).square_()
        return scores.masked_fill_(self.dense[low:high] == 0, ZERO_SCORE).T.contiguous()

    def _choose(self, quota: Tensor) -> Tensor:
        """The keep-mask bool [out, columns] of the block; `quota` int64: how many go, by row or in all."""
        scores = self._scores(0, self.dense.shape[0])
        if self.rule.pattern.kind == "block":
            rows, columns = self.rule.pattern.shape
            sums = block_scores(scores.clamp_min(0.0), (rows, columns))
            empty = block_scores((scores != ZERO_SCORE).to(torch.float32), (rows, columns)) == 0
            sums = sums.masked_fill(empty, ZERO_SCORE)
            keep = ~smallest(sums.reshape(1, -1), quota).reshape(sums.shape)
            return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        groups = scores if len(quota) > 1 else scores.reshape(1, -1)
        return ~smallest(groups, quota).reshape(scores.shape)

    def _eliminate(self, low: int, high: int) -> None:
        """D of the block's columns from `low` to `high`, whose `shift` has everything before `low` in it."""
        if high - low > self.leaf:
            middle = low + max(1, (high - low) // self.leaf // 2) * self.leaf
            self._eliminate(low, middle)
            part, done = (
                slice(self.start + middle, self.start + high),
                slice(self.start + low, self.start + middle),
            )
            self.shift[middle:high].addmm_(self.lower[part, done], self.delta[done], alpha=-1)
            self._eliminate(middle, high)
            return
        if self.grouped:
            pattern = self.rule.pattern
            self.kept[low:high] = n_m_mask(self._scores(low, high), pattern.keep, pattern.group).T
        for column in range(low, high):
            place = self.start + column
            if column > low:
                done = slice(self.start + low, place)
                self.shift[column].addmv_(self.delta[done].T, self.lower[place, done], alpha=-1)
            torch.where(self.kept[column], self.shift[column], self.dense[column], out=self.delta[place])


def _quotas(rule: Rule, dense: Tensor, edges: list[int]) -> Tensor:
    """How many go from each block of columns: int64 [rows or 1, blocks]; for blocks of weights, whole blocks.

    dense: [out, in]. Sums are exactly what `Rule.mask` removes, from every row with comparison "row".
    """
    rows, inputs = dense.shape
    zero = dense == 0
    if rule.pattern.kind == "block":
        high, wide = rule.pattern.shape
        empty = zero.reshape(rows // high, high, inputs // wide, wide).all(dim=3).all(dim=1).sum(0)
        size = torch.tensor([rows // high * (b - a) // wide for a, b in _pairs(edges)])
        zeros = torch.stack([empty[a // wide : b // wide].sum() for a, b in _pairs(edges)]).cpu()
        total = torch.tensor([rule.remove // (high * wide)])
        return spread(total, size, _at_most(zeros, int(total)).unsqueeze(0)).to(dense.device)
    zeros = torch.stack([zero[:, a:b].sum(1) for a, b in _pairs(edges)], dim=1).cpu()
    widths = torch.tensor([b - a for a, b in _pairs(edges)])
    if rule.comparison == "row":
        total = row_quotas(rule.remove, rows, inputs, zeros.sum(1))
        return spread(total, widths, zeros).to(dense.device)
    total = torch.tensor([max(rule.remove, int(zeros.sum()))])
    return spread(total, widths * rows, zeros.sum(0, keepdim=True)).to(dense.device)


def _pairs(edges: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(edges))


def _turned(matrix: Tensor) -> Tensor:
    """The transpose as a contiguous copy; torch is several times faster at this if its argument is
    contiguous.
    """
    return matrix.contiguous().T.contiguous()


def _at_most(zeros: Tensor, total: int) -> Tensor:
    """Counts int64 [blocks] cut off where their running sum passes `total`."""
    running = torch.cat([torch.zeros(1, dtype=torch.int64), zeros.cumsum(0)]).clamp_max(total)
    return running.diff()


def spread(totals: Tensor, sizes: Tensor, zeros: Tensor) -> Tensor:
    """Counts int64 [n, blocks] with sums `totals` [n], in proportion to `sizes` [blocks], rounded
    cumulatively.

    A block with more `zeros` [n, blocks] than its share loses all of them, and the others share the rest.
    Needs zeros <= sizes and sum(zeros) <= totals <= sum(sizes).
    """
    free = torch.ones_like(zeros, dtype=torch.bool)
    while True:
        room = torch.where(free, sizes, 0).cumsum(1)
        left = (totals - torch.where(free, 0, zeros).sum(1)).unsqueeze(1)
        reached = left * room // room[:, -1:].clamp_min(1)
        share = torch.diff(reached, dim=1, prepend=torch.zeros_like(left))
        full = free & (zeros > share)
        if not bool(full.any()):
            return torch.where(free, share, zeros)
        free &= ~full
