"""Combinatorial: a mask is improved by projected gradient steps and single swaps that are known to pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.parameters import parameter
from compression.updates import updates
from compression.updates.base import Cut, Task
from compression.updates.quadratic import (
    conjugate_gradients,
    damped,
    damping_parameter,
    hessian_of,
    restored,
    row_errors,
)
from compression.updates.swaps import swap

SOLVE_STEPS = 4
LAST_STEPS = 20
# Steps of a line search, relative to the last one that paid.
STEPS = (2.0, 1.0, 0.5)
SMALLEST_STEP = 1e-3
ENOUGH = 1e-4


@updates.register
@dataclass(frozen=True)
class Combinatorial:
    """Iterative hard thresholding and swaps on min tr((W - W') H (W - W')^T) under the rule, after CHITA
    (Benbaki et al. 2023, algorithms 1 to 3; there for the whole network's loss, here for one weight).

    Starts at the incoming cut. A round takes W' + t G / diag(H) with G = (W - W') H, the gradient in
    coordinates in which every input has the same norm; keeps the weights that are largest in them, as the
    rule says; solves roughly for their values (SOLVE_STEPS of preconditioned conjugate gradients); and is
    accepted only where the error falls, tried with twice, once and half the step that paid last. Rows are
    accepted one by one where the rule has no competition between them, else the weight as a whole.

    After that, swaps: removing i and inserting j with its best value, the others as they are, changes the
    error of a row by exactly

    2 w_i g_i + w_i^2 H_ii - (g_j + w_i H_ij)^2 / H_jj,

    and the best pair of each row (in the same group for n:m) is swapped, followed by conjugate gradients. For
    unstructured masks the pairs are of the CANDIDATES cheapest to remove and most useful to insert. Masks of
    blocks of weights have no swaps.

    Never worse than the incoming cut: the errors of both over the whole weight, in float64 and without
    damping, are compared, and the better is returned.

    Differences from the paper: H has SparseGPT's damping as the ridge; the line search tries three steps a
    round instead of every breakpoint; the inverse of H is not needed, conjugate gradients replace its
    back-solve.
    """

    name: ClassVar[str] = "combinatorial"
    summary: ClassVar[str] = (
        "Improves a mask by gradient steps and swaps that pay; slower than alps, best after it."
    )
    paper: ClassVar[str | None] = "2302.14623"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    starts_over: ClassVar[bool] = False

    damping: float = damping_parameter()
    iht_rounds: int = parameter(20, "Rounds of gradient steps with a line search.", ge=0, le=1000)
    swap_rounds: int = parameter(10, "Swaps in every row after that.", ge=0, le=10000)

    def apply(self, task: Task, cut: Cut) -> Cut:
        """The improved cut, or the incoming one if that is better."""
        exact = hessian_of(task)
        problem = _Problem(task, damped(exact, self.damping), exact.diagonal() == 0)
        point = problem.point(cut.weight, cut.mask)
        point = _threshold(problem, point, self.iht_rounds)
        if task.rule.pattern.kind != "block":
            weight, mask = swap(task, problem.hessian, point.mask, problem.dead, self.swap_rounds)
            trial = problem.point(weight, mask)
            point = _merge(point, trial, (trial.errors < point.errors).unsqueeze(1))
        weight = conjugate_gradients(task.dense, point.mask, point.weight, problem.hessian, LAST_STEPS)
        weight = restored(task.dense, weight, point.mask, exact)
        found, given = (row_errors(task.dense, item, exact).sum() for item in (weight, cut.weight))
        return Cut(weight, point.mask, cut.bias) if bool(found < given) else cut


@dataclass(frozen=True)
class _Point:
    """A weight float32 and its mask bool, both [out, in]; G = (W - W') H [out, in]; each row's error, float64
    [out].
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor
    errors: Tensor


@dataclass(frozen=True)
class _Problem:
    """`hessian`: float32 [in, in], damped; `dead`: bool [in], inputs that are always zero."""

    task: Task
    hessian: Tensor
    dead: Tensor

    def point(self, start: Tensor, mask: Tensor) -> _Point:
        """The point that a few steps of conjugate gradients on `mask` lead to from `start`."""
        weight = conjugate_gradients(self.task.dense, mask, start, self.hessian, SOLVE_STEPS)
        delta = self.task.dense - weight
        gradient = delta @ self.hessian
        return _Point(weight, mask, gradient, (delta * gradient).sum(1, dtype=torch.float64))

    def better(self, old: _Point, new: _Point, *, alone: bool = False) -> Tensor:
        """Bool [out, 1]: rows of `new` with a smaller error; all or none if rows compete, unless `alone`."""
        rule = self.task.rule
        if (
            alone
            or rule.pattern.kind == "n:m"
            or (rule.pattern.kind == "unstructured" and rule.comparison == "row")
        ):
            return (new.errors < old.errors).unsqueeze(1)
        return (new.errors.sum() < old.errors.sum()).expand(len(old.errors)).unsqueeze(1)


def _merge(old: _Point, new: _Point, rows: Tensor) -> _Point:
    """`new` in the rows (bool [out, 1]) that are chosen, else `old`."""
    return _Point(
        torch.where(rows, new.weight, old.weight),
        torch.where(rows, new.mask, old.mask),
        torch.where(rows, new.gradient, old.gradient),
        torch.where(rows.squeeze(1), new.errors, old.errors),
    )


def _threshold(problem: _Problem, point: _Point, rounds: int) -> _Point:
    """Rounds of hard thresholding until nothing falls any more."""
    diagonal = problem.hessian.diagonal()
    inverse = torch.where(diagonal > 0, diagonal, torch.inf).reciprocal()
    size = torch.full((len(point.errors), 1), 0.5, device=point.weight.device)
    for _ in range(rounds):
        base, paid = point, torch.zeros_like(size)
        for factor in STEPS:
            moved = torch.addcmul(base.weight, base.gradient * inverse, size * factor)
            scores = moved.square().mul_(diagonal).masked_fill_(problem.dead, 0.0)
            mask = problem.task.rule.mask(scores, problem.task.dense)
            trial = problem.point(torch.where(mask, moved, 0.0), mask)
            rows = problem.better(point, trial)
            point = _merge(point, trial, rows)
            paid = torch.where(rows, size * factor, paid)
        size = torch.where(paid > 0, paid, size * 0.25)
        fallen = float(base.errors.sum() - point.errors.sum())
        stuck = bool((size < SMALLEST_STEP).all())
        if stuck or (bool((paid > 0).any()) and fallen <= ENOUGH * float(base.errors.sum())):
            break
    return point
