"""Rectangular blocks of weights go as one."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.granularity import granularities
from compression.granularity.base import smallest


@granularities.register
class Blocks:
    """r x c blocks of the weight matrix [out, in], for kernels that skip whole blocks."""

    name = "block"
    summary = "Blocks of rows x columns (16x16, 1x8, ...) go as one; for block-sparse kernels."
    pattern = r"^([1-9][0-9]{0,2})x([1-9][0-9]{0,2})$"


def block_scores(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of the scores of each block: [out / r, in / c], float32. ValueError if the shape does not
    divide."""
    rows, columns = shape
    if scores.shape[0] % rows or scores.shape[1] % columns:
        raise ValueError(f"{tuple(scores.shape)} cannot be cut into blocks of {rows}x{columns}")
    parts = scores.reshape(scores.shape[0] // rows, rows, scores.shape[1] // columns, columns)
    return parts.sum(dim=(1, 3), dtype=torch.float64).to(torch.float32)


def block_mask(scores: Tensor, shape: tuple[int, int], remove: int) -> Tensor:
    """Keep-mask bool [out, in]: the `remove / (r * c)` blocks with the smallest sums of scores go.

    Among equal sums the first by position go. ValueError if `remove` is no multiple of a block's size.
    """
    size = shape[0] * shape[1]
    if remove % size:
        raise ValueError(f"{remove} weights are no whole number of blocks of {shape[0]}x{shape[1]}")
    sums = block_scores(scores, shape)
    count = torch.tensor([remove // size], device=scores.device)
    keep = ~smallest(sums.reshape(1, -1), count).reshape(sums.shape)
    return keep.repeat_interleave(shape[0], 0).repeat_interleave(shape[1], 1)
