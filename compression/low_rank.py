"""A weight as a product of two thin ones: directions of its outputs, what each holds, the factors.

All criteria weigh inputs: with S [in, in] (or a diagonal), they ask for the W' of rank r with the smallest
||(W - W') S||_F. By the theorem of Eckart and Young that is W' S = U_r U_r^T (W S), with U_r the first r left
singular vectors of W S; so W' = U_r U_r^T W for an S that can be inverted, and S need never be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.errors import CompressionError


class NotFactored(CompressionError):
    """The products of a site's inputs cannot be factored, or are not finite."""

    code = "hessian_singular"


@dataclass(frozen=True)
class Spectrum:
    """`left`: float64 [out, k], orthonormal columns, the most important first; `values`: float64 [k], never
    rising, k = min(out, in): without all but the first r directions, the criterion's error is the root of the
    sum of squares of the other values."""

    left: Tensor
    values: Tensor


def spectrum(weight: Tensor, scale: Tensor | None = None) -> Spectrum:
    """Left singular vectors and values of W S. weight: [out, in], any float dtype; scale: S as float64
    [in, in], or [in] for a diagonal one (None: the identity). Signs are such that the largest element of each
    vector is positive."""
    product = weight.to(torch.float64)
    if scale is not None:
        product = product @ scale if scale.dim() == 2 else product * scale
    left, values, _ = torch.linalg.svd(product, full_matrices=False)
    largest = left.abs().argmax(0, keepdim=True)
    signs = left.gather(0, largest).sign()
    return Spectrum(left * torch.where(signs == 0, 1.0, signs), values)


def root(moment: Tensor, damping: float, site: str) -> Tensor:
    """S with S S^T = M + d I, lower triangular float64 [in, in] (Cholesky). moment: M, the sum of x x^T over
    tokens, float32 [in, in]; d is `damping` times the mean of M's diagonal, ten times more as often as M is
    indefinite by the rounding of its sums. Raises NotFactored."""
    exact = moment.to(torch.float64)
    mean = float(exact.diagonal().mean())
    if not bool(torch.isfinite(exact).all()):
        raise NotFactored(f"the products of the inputs of {site} are not finite; calibrate with other data")
    if mean == 0:
        # Inputs that are always zero: every direction costs nothing, so those of the weight itself decide.
        return torch.eye(len(exact), dtype=torch.float64, device=exact.device)
    for step in range(8):
        shifted = exact.clone()
        shifted.diagonal().add_(damping * 10**step * mean)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if int(failed) == 0:
            found: Tensor = factor
            return found
    raise NotFactored(f"the products of the inputs of {site} cannot be factored; calibrate with more data")


def factors(weight: Tensor, found: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """(down float64 [rank, in], up float64 [out, rank]) with up @ down = U_r U_r^T W.

    up = U_r D^(1/2) and down = D^(-1/2) U_r^T W with D the first values: where D are the singular values of
    W S, down is D^(1/2) V_r^T S^-1. A direction with value zero becomes zeros.
    """
    left, values = found.left[:, :rank], found.values[:rank]
    half = values.sqrt()
    inverse = torch.where(half > 0, 1 / half.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return inverse[:, None] * (left.T @ weight.to(torch.float64)), left * half


def product(down: Tensor, up: Tensor) -> Tensor:
    """up @ down, float32 [out, in], of factors as they are stored."""
    return up.to(torch.float32) @ down.to(torch.float32)


def refitted(weight: Tensor, down: Tensor, moment: Tensor, damping: float) -> Tensor:
    """up float64 [out, rank] with the smallest ||(W - up @ down) S||_F for a given down, S S^T = M + d I:
    up = W (M + d I) down^T (down (M + d I) down^T)^-1; where that cannot be inverted, the shortest such up.

    moment: M float32 [in, in] of the inputs; d is `damping` times the mean of its diagonal.
    """
    exact = moment.to(torch.float64).clone()
    exact.diagonal().add_(damping * float(exact.diagonal().mean()))
    thin = down.to(torch.float64)
    inner = thin @ exact @ thin.T
    outer = weight.to(torch.float64) @ exact @ thin.T
    found: Tensor = outer @ torch.linalg.pinv(inner, hermitian=True)
    return found
