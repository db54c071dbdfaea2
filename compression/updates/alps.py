"""ALPS: mask and values together by operator splitting, then values by conjugate gradients."""

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
    precision,
    restored,
    row_errors,
)

CHECK_EVERY = 3
SMALLEST_RHO = 1e-4
LARGEST_RHO = 1e6
# How rho grows by the share of the kept weights that changed since the last check (2406.07831, appendix B.1).
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
SHRINK = 0.2


@updates.register
@dataclass(frozen=True)
class ALPS:
    """ADMM on min tr((W - W') H (W - W')^T) with W' = D, D under the rule (Meng et al. 2024, section 3).

    With B the free copy and V the multiplier of B = D, one iteration is

    B = (W H - V + rho D) (H + rho I)^-1,    D = projection of B + V / rho,    V = V + rho (B - D),

    in coordinates W diag(s), H / (s s^T) with s_i^2 = H_ii, in which the penalty rho / 2 |B - D|^2 treats all
    inputs alike. The projection is the nearest matrix under the rule in these coordinates, so it keeps the
    weights with the largest (b + v / rho)^2, and the blocks with the largest sums of them; that is what
    `rule.mask` does with these as scores. H has one eigen-decomposition. rho grows with the support's change
    every third iteration until the support stands still; if it hardly changed at the very first check, rho
    was too large and is lowered. The values of the final support come from preconditioned conjugate
    gradients.

    Never worse than the incoming cut: the errors of both over the whole weight, in float64 and without
    damping, are compared, and the better is returned.

    Differences from the paper: D starts at the incoming cut instead of the largest weights; H is damped as in
    SparseGPT (its code does so, too); rows may have equal counts; what is kept is compared after the
    conjugate gradients.
    """

    name: ClassVar[str] = "alps"
    summary: ClassVar[str] = (
        "Searches mask and values together by ADMM; the most exact choice at high sparsity."
    )
    paper: ClassVar[str | None] = "2406.07831"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    starts_over: ClassVar[bool] = False

    damping: float = damping_parameter()
    alps_iterations: int = parameter(
        300, "Iterations after which the search ends in any case.", ge=3, le=10000
    )
    alps_rho: float = parameter(0.1, "Penalty that the search starts with.", gt=0.0, le=1000.0)
    pcg_iterations: int = parameter(
        10, "Steps of conjugate gradients on the mask that was found.", ge=0, le=1000
    )

    def apply(self, task: Task, cut: Cut) -> Cut:
        """The cut that the search finds, or the incoming one if that is better."""
        exact = hessian_of(task)
        hessian = damped(exact, self.damping)
        search = _Search(task, cut, hessian, exact.diagonal() == 0, self.alps_rho)
        weight = search.run(self.alps_iterations)
        weight = conjugate_gradients(task.dense, search.mask, weight, hessian, self.pcg_iterations)
        weight = restored(task.dense, weight, search.mask, exact)
        found, given = (row_errors(task.dense, item, exact).sum() for item in (weight, cut.weight))
        return Cut(weight, search.mask, cut.bias) if bool(found < given) else cut


class _Search:
    """The state of the iterations, all float32 [out, in] in the coordinates of the class above: `target`, W
    H; `split`, D; `multiplier`, V; and `mask`, the support of D.
    """

    def __init__(self, task: Task, cut: Cut, hessian: Tensor, dead: Tensor, rho: float) -> None:
        self.task = task
        self.dead = dead
        self.rho = rho
        diagonal = hessian.diagonal()
        self.scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        normal = hessian / self.scale / self.scale.unsqueeze(1)
        values, vectors = torch.linalg.eigh(normal.to(precision(normal.shape[0])))
        self.values, self.vectors = values.clamp_min(0.0).to(torch.float32), vectors.to(torch.float32)
        self.target = (task.dense * self.scale) @ normal
        self.start = Cut(cut.weight * self.scale, cut.mask)
        self._reset()

    def _reset(self) -> None:
        self.split, self.mask = self.start.weight, self.start.mask
        self.multiplier = torch.zeros_like(self.split)
        self.inverse = (self.vectors / (self.values + self.rho)) @ self.vectors.T

    def run(self, iterations: int) -> Tensor:
        """Iterates until the support stands still; the weight under `mask`, in its own coordinates."""
        seen, grown = self.mask, False
        for number in range(1, iterations + 1):
            self._iterate()
            if number % CHECK_EVERY:
                continue
            changed = float((self.mask != seen).sum()) / max(1, int(self.mask.sum()))
            factor = next((factor for share, factor in GROWTH if changed > share), 1.0)
            if grown and changed == 0.0:
                break
            if not grown and changed <= GROWTH[1][0]:
                if self.rho <= SMALLEST_RHO:
                    break
                self.rho *= SHRINK
                self._reset()
                seen = self.mask
                continue
            grown, seen = True, self.mask
            self.rho = min(self.rho * factor, LARGEST_RHO)
            self.inverse = (self.vectors / (self.values + self.rho)) @ self.vectors.T
        return self.split / self.scale

    def _iterate(self) -> None:
        free = (self.target - self.multiplier).add_(self.split, alpha=self.rho) @ self.inverse
        moved = free.add(self.multiplier, alpha=1 / self.rho)
        self.mask = self.task.rule.mask(moved.square().masked_fill_(self.dead, 0.0), self.task.dense)
        self.split = torch.where(self.mask, moved, 0.0)
        # V + rho (B - D), with B + V / rho = `moved`
        self.multiplier = (moved - self.split).mul_(self.rho)
