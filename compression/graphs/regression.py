"""Least squares of what a node should give by what it reads, group by group of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor


class Regression:
    """Sums for the least squares of errors [rows, groups, out] by inputs [rows, groups, in], with a constant,
    every group for itself; float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[Tensor] = []

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Rows more."""
        by_group, wanted = inputs.transpose(0, 1), errors.transpose(0, 1)
        parts = [
            by_group.mT @ by_group,
            by_group.mT @ wanted,
            by_group.sum(1, dtype=torch.float64),
            wanted.sum(1, dtype=torch.float64),
        ]
        self.rows += inputs.shape[0]
        parts = [part.double() for part in parts]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts

    def solve(self, damping: float) -> tuple[Tensor, Tensor]:
        """(change of the weights [groups, in, out], shift [groups, out]): the least mean of ||error||^2 +
        damping * v * ||change||^2 of every group, v the mean variance of its inputs."""
        gram, cross, first, error = (part / self.rows for part in self.sums)
        gram = gram - first[:, :, None] * first[:, None, :]
        cross = cross - first[:, :, None] * error[:, None, :]
        spread = gram.diagonal(dim1=1, dim2=2).clamp(min=0).mean(1)
        # a little more than rounding, so that inputs that never vary leave their weights alone
        ridge = max(damping, 1e-7) * spread + torch.finfo(torch.float64).tiny
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        change = torch.linalg.solve(gram + ridge[:, None, None] * eye, cross)
        return change, error - (first[:, None, :] @ change).squeeze(1)
