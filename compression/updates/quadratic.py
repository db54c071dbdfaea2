"""The layer-wise quadratic that the updates work on: tr((W - W') H (W - W')^T) with H = sum of x x^T.

Shared by the updates that change values or masks with the Hessian of a site's inputs. H is float32 [in, in],
not divided by the number of tokens; weights are float32 [out, in]; dead inputs are those with H_ii = 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compression.criteria.base import needed
from compression.errors import CompressionError
from compression.parameters import parameter
from compression.updates.base import Task

# Up to this width, factors are in float64: a Hessian of float32 sums can be indefinite by its rounding alone.
EXACT_INPUTS = 4096
ERROR_COLUMNS = 1024
LEAF = 256
DAMPING_STEPS = (1.0, 10.0, 100.0)


class HessianSingular(CompressionError):
    """The products of a site's inputs cannot be factored, or are not finite."""

    code = "hessian_singular"


class WeightTooWide(CompressionError):
    """A weight has more inputs than a method can deal with in reasonable time and memory."""

    code = "weight_too_wide"


def damping_parameter() -> Any:
    """The parameter `damping`, one for all updates that have it."""
    return parameter(0.01, "Added to the diagonal of the Hessian, relative to its mean.", gt=0.0, le=10.0)


def precision(inputs: int) -> torch.dtype:
    """float64 up to EXACT_INPUTS inputs, float32 beyond."""
    return torch.float64 if inputs <= EXACT_INPUTS else torch.float32


def hessian_of(task: Task) -> Tensor:
    """The Hessian float32 [in, in] of a task, on the device of its weight. HessianSingular if it is not
    finite.
    """
    hessian = needed(task.statistics, "hessian", task.dense.device)
    if not bool(torch.isfinite(hessian.sum(dtype=torch.float64))):
        raise HessianSingular(
            f"the products of the inputs of {task.site} are not finite; calibrate with other data, or use "
            "an update that needs no Hessian"
        )
    return hessian


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I, float32 [in, in]."""
    result = hessian.clone()
    result.diagonal().add_(damping * hessian.diagonal().mean())
    return result


def damped_factor(hessian: Tensor, damping: float, site: str) -> tuple[Tensor, Tensor]:
    """U with U U^T = H + damping * mean(diag H) * I, as D^-1 U^T (unit lower) and D = diag U: float32 [in,
    in], [in].

    U is the inverse of the upper Cholesky factor of the inverse that SparseGPT (2301.00774, section 3.3)
    works with, from one Cholesky of the reversed matrix, in `precision`, and without inverting anything. Dead
    inputs have 1 on the diagonal. If the matrix is indefinite by rounding, the damping is raised by factors
    of 10 up to 100 times; HessianSingular after that.
    """
    kind = precision(hessian.shape[0])
    plain = hessian.diagonal().flip(0).to(kind)
    amount = damping * plain.mean()
    plain = plain.masked_fill(plain == 0, 1.0)
    for step in DAMPING_STEPS:
        # Flipped anew each time: a wide weight has no room for a copy that is almost never needed.
        factor = hessian.flip(0, 1).to(kind)
        factor.diagonal().copy_(plain + step * amount)
        if _factor(factor.T) and bool(torch.isfinite(factor.diagonal()).all()):
            scale = factor.diagonal().to(torch.float32, copy=True)
            return _reverse(factor.to(torch.float32).div_(scale.unsqueeze(1))), scale.flip(0)
    raise HessianSingular(
        f"the products of the inputs of {site} cannot be factored even with a damping of "
        f"{damping * DAMPING_STEPS[-1]:g}: use more calibration data or a larger damping"
    )


def restored(dense: Tensor, weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The weight with its dense values at kept weights of dead inputs, which no method has a reason to
    change.
    """
    return torch.where(mask & (hessian.diagonal() == 0), dense, weight)


def _reverse(matrix: Tensor) -> Tensor:
    """Turns the rows and columns of a matrix around, in its place: a wide one has no room for a copy."""
    size = matrix.shape[0]
    for start in range(0, size // 2, LEAF):
        stop = min(start + LEAF, size // 2)
        first, last = matrix[start:stop], matrix[size - stop : size - start]
        kept = first.flip(0, 1)
        first.copy_(last.flip(0, 1))
        last.copy_(kept)
    if size % 2:
        matrix[size // 2].copy_(matrix[size // 2].flip(0))
    return matrix


def _factor(matrix: Tensor) -> bool:
    """Puts the lower Cholesky factor in the place of a matrix; whether it has one.

    By halves down to LEAF: LAPACK's copy and clearing of a large factor cost torch more than the factor
    itself.
    """
    size = matrix.shape[0]
    if size <= LEAF:
        lower, info = torch.linalg.cholesky_ex(matrix)
        matrix.copy_(lower)
        return int(info) == 0
    half = size // 2
    first, cross, rest = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    if not _factor(first):
        return False
    cross.copy_(torch.linalg.solve_triangular(first.T, cross, upper=True, left=False))
    rest.addmm_(cross, cross.T, alpha=-1)
    matrix[:half, half:].zero_()
    return _factor(rest)


def row_errors(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """(W - W') H (W - W')^T of each row: float64 [out], computed in float64."""
    delta = dense.to(torch.float64) - weight.to(torch.float64)
    total = torch.zeros(dense.shape[0], dtype=torch.float64, device=dense.device)
    for at in range(0, dense.shape[1], ERROR_COLUMNS):
        part = slice(at, at + ERROR_COLUMNS)
        total += ((delta @ hessian[:, part].to(torch.float64)) * delta[:, part]).sum(1)
    return total


def conjugate_gradients(dense: Tensor, mask: Tensor, start: Tensor, hessian: Tensor, steps: int) -> Tensor:
    """Lowers (W - W') H (W - W')^T over the weights that `mask` keeps: float32 [out, in], 0 where it does
    not.

    Preconditioned conjugate gradients (Jacobi), all rows at once, from `start`; every step is one product
    with H. Rows that have converged, and directions in which H has no curvature, stay. Dead inputs keep their
    values.
    """
    kept = mask.to(dense.dtype)
    diagonal = hessian.diagonal()
    inverse = torch.where(diagonal > 0, diagonal, torch.inf).reciprocal()
    result = start * kept
    residual = ((dense - result) @ hessian).mul_(kept)
    direction = residual * inverse
    energy = (residual * direction).sum(1, keepdim=True)
    enough = energy * 1e-10
    for _ in range(steps):
        image = direction @ hessian
        curvature = (direction * image).sum(1, keepdim=True)
        size = (direction.square() * diagonal).sum(1, keepdim=True)
        moves = (energy > enough) & (curvature > 1e-7 * size)
        step = torch.where(moves, energy / curvature, 0.0)
        result.addcmul_(direction, step)
        residual.sub_(image.mul_(kept).mul_(step))
        scaled = residual * inverse
        fresh = (residual * scaled).sum(1, keepdim=True)
        direction = scaled.addcmul_(direction, torch.where(moves, fresh / energy, 0.0))
        energy = fresh
    return result
