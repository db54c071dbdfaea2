"""n of every m consecutive inputs are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.granularity import granularities


@granularities.register
class NOfM:
    """n kept of every m consecutive weights along the inputs, in every row."""

    name = "n:m"
    summary = "n of every m consecutive inputs stay (2:4, 4:8, ...); the form that some hardware speeds up."
    pattern = r"^([1-9]|[12][0-9]|3[01]):([2-9]|[12][0-9]|3[0-2])$"


def n_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep-mask bool [out, in] with exactly n kept in every group of m consecutive inputs.

    scores: float32 [out, in], `in` divisible by m, 1 <= n < m. Among equal scores the last by position stay.
    """
    rows, columns = scores.shape
    if not 1 <= n < m:
        raise ValueError(f"{n}:{m} is no pattern: 1 <= n < m")
    if columns % m:
        raise ValueError(f"{columns} inputs are not divisible by {m}")
    groups = scores.reshape(rows, columns // m, m)
    order = groups.sort(dim=-1, stable=True).indices
    mask = torch.ones_like(groups, dtype=torch.bool)
    mask.scatter_(-1, order[..., : m - n], False)
    return mask.reshape(rows, columns)
