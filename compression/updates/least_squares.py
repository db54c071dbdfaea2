"""Least squares: the best values there are for the weights that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.parameters import parameter
from compression.updates import updates
from compression.updates.base import Cut, Task
from compression.updates.quadratic import WeightTooWide, hessian_of, row_errors

CHUNK_BYTES = 256 << 20
# Pivots below this share of their H_ii are rounding noise of the float32 sums that H consists of.
NOISE = 1e-7
RIDGES = (1e-6, 1e-4, 1e-2)


@updates.register
@dataclass(frozen=True)
class LeastSquares:
    """For each row with kept weights S, the minimum of (w - w') H (w - w')^T: H_SS (w'_S - w_S) = H_SP w_P.

    P are the removed weights. The normal equations of min ||X w - X w'|| over w' on S, solved in float64 for
    the change of w_S, so that inputs that are always zero change nothing. Rows in which H_SS is singular to
    the precision of its entries (a pivot below 1e-7 of H_ii, as with fewer tokens than inputs) get a ridge of
    1e-6 H_ii (more if that is not enough), which draws towards the dense weight; other rows are exact. A row
    in which rounding makes this worse than the incoming cut keeps what it had.
    """

    name: ClassVar[str] = "least-squares"
    summary: ClassVar[str] = "Gives the weights that stay the best values there are. Exact and slow."
    paper: ClassVar[str | None] = None
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    starts_over: ClassVar[bool] = False

    largest_inputs: int = parameter(
        2048, "Inputs up to which a system of equations is solved for every output.", ge=1, le=65536
    )

    def apply(self, task: Task, cut: Cut) -> Cut:
        """New values under the same mask. WeightTooWide if the weight is wider than `largest_inputs`."""
        inputs = task.dense.shape[1]
        if inputs > self.largest_inputs:
            raise WeightTooWide(
                f"{task.site} has {inputs} inputs, least-squares takes at most {self.largest_inputs} "
                "(option largest_inputs): use the update sparsegpt or alps"
            )
        hessian = hessian_of(task)
        solved = _solve(task.dense, cut.mask, hessian)
        better = row_errors(task.dense, solved, hessian) < row_errors(task.dense, cut.weight, hessian)
        return Cut(torch.where(better.unsqueeze(1), solved, cut.weight), cut.mask, cut.bias)


def _solve(dense: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The least squares weight float32 [out, in]: rows of similar support together, padded to the largest."""
    exact = hessian.to(torch.float64)
    right = dense.to(torch.float64).masked_fill(mask, 0.0) @ exact
    supports = mask.sum(1).cpu()
    order = supports.sort(stable=True).indices
    places = mask.sort(dim=1, descending=True, stable=True).indices
    result = torch.where(mask, dense, 0.0).to(torch.float64)
    at = len(order)
    while at > 0:
        width = int(supports[order[at - 1]])
        if width == 0:
            break
        count = min(at, max(1, CHUNK_BYTES // (3 * 8 * width * width)))
        rows = order[at - count : at].to(dense.device)
        columns = places[rows, :width]
        inside = torch.arange(width, device=dense.device) < supports[rows.cpu()].to(dense.device).unsqueeze(1)
        change = _batch(exact, columns, inside, right[rows].gather(1, columns))
        result[rows] = result[rows].scatter_add(1, columns, change)
        at -= count
    return torch.where(mask, result, 0.0).to(torch.float32)


def _batch(exact: Tensor, columns: Tensor, inside: Tensor, right: Tensor) -> Tensor:
    """Solutions float64 [n, width] of H[columns, columns] x = right; 0 outside `inside` and at dead inputs.

    exact: H, float64 [in, in]; columns: int64 [n, width]; inside: bool [n, width].
    """
    live = inside & (exact.diagonal()[columns] > 0)
    systems = exact[columns.unsqueeze(2), columns.unsqueeze(1)]
    systems *= live.unsqueeze(2)
    systems *= live.unsqueeze(1)
    diagonal = systems.diagonal(dim1=1, dim2=2)
    diagonal.masked_fill_(~live, 1.0)
    scale = diagonal.clone()
    factors, info = torch.linalg.cholesky_ex(systems)
    for ridge in RIDGES:
        pivots = factors.diagonal(dim1=1, dim2=2).square() / scale
        bad = (info != 0) | ~(pivots.amin(1) > NOISE)
        if not bool(bad.any()):
            break
        places = bad.nonzero().flatten()
        damped = systems[places]
        damped.diagonal(dim1=1, dim2=2).add_(ridge * scale[places])
        fresh, failed = torch.linalg.cholesky_ex(damped)
        factors[places], info[places] = fresh, failed
    change = torch.cholesky_solve((right * live).unsqueeze(2), factors).squeeze(2)
    return torch.nan_to_num(change * live, nan=0.0, posinf=0.0, neginf=0.0)
