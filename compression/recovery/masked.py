"""Linear layers whose trained weight is exactly the weight that will be written: low rank, under the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.loading.transformers_import import Conv1D


def effective_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """(W + scale * B A) where the mask keeps, exact zero elsewhere, in the dtype of ``weight``.

    weight [out, in] of any float dtype, a [rank, in] and b [out, rank] float32, mask bool [out, in] or None.
    The sum is in float32 and rounded once. (LoRA: Hu et al. 2022, arXiv 2106.09685.)
    """
    merged = torch.addmm(weight.float(), b, a, alpha=scale)
    if mask is not None:
        merged = torch.where(mask, merged, 0.0)
    return merged.to(weight.dtype)


class _Apply(torch.autograd.Function):
    """x W_eff^T, with W_eff made again in the backward pass instead of being kept for every layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, a, b, weight, mask)
        ctx.scale = scale
        return functional.linear(x, effective_weight(weight, a, b, scale, mask))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, a, b, weight, mask = ctx.saved_tensors
        back = None
        if ctx.needs_input_grad[0]:
            back = gradient @ effective_weight(weight, a, b, ctx.scale, mask)
        change = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float() * ctx.scale
        if mask is not None:
            change = torch.where(mask, change, 0.0)
        return back, b.T @ change, change @ a.T, None, None, None


class MaskedLowRank(nn.Module):
    """Stands in for a linear layer: frozen weight and bias, trained float32 factors A and B (B starts at 0).

    a [rank, in] starts uniform in +-1/sqrt(in), from ``seed``; b [out, rank]. ``Conv1D`` keeps its weight and
    mask as [in, out]; they are looked at the other way round here.
    """

    def __init__(
        self, linear: nn.Linear | Conv1D, mask: Tensor | None, rank: int, scale: float, seed: int
    ) -> None:
        super().__init__()
        self.flipped = isinstance(linear, Conv1D)
        weight = linear.weight.detach()
        if self.flipped:
            weight, mask = weight.T, None if mask is None else mask.T
        outputs, inputs = weight.shape
        generator = torch.Generator().manual_seed(seed)
        bound = inputs**-0.5
        start = torch.rand((rank, inputs), generator=generator) * (2 * bound) - bound
        device = weight.device
        self.weight = weight
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.mask = None if mask is None else mask.to(device)
        self.scale = scale
        self.a = nn.Parameter(start.to(device))
        self.b = nn.Parameter(torch.zeros((outputs, rank), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        result: Tensor = _Apply.apply(x, self.a, self.b, self.weight, self.mask, self.scale)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias

    def merged(self) -> Tensor:
        """The weight to write, as it is stored: the one that ``forward`` computes with, bit for bit."""
        weight = effective_weight(self.weight, self.a.detach(), self.b.detach(), self.scale, self.mask)
        return weight.T if self.flipped else weight
