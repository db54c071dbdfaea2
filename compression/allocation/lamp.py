"""LAMP: one threshold over scores that every weight matrix has normalised for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compression.allocation import allocations
from compression.allocation.base import Evidence, check_room
from compression.allocation.globally import global_counts


@allocations.register
class Lamp:
    """A global threshold over s_u^2 / sum of s_v^2 for s_v >= s_u (Lee et al. 2021, Layer-Adaptive Sparsity
    for the Magnitude-based Pruning, equation 2, with the criterion's scores s in place of |W|).
    """

    name = "lamp"
    summary = "One threshold over scores normalised within each weight, so that no weight is emptied."
    paper = "2010.07611"
    needs = frozenset({"scores"})

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """Counts below the exact threshold over the normalised scores."""
        check_room(evidence.bounds, remove_total)

        def stream() -> Iterator[tuple[str, Tensor]]:
            return ((name, lamp_scores(scores)) for name, scores in evidence.scores())

        return global_counts(evidence.bounds, stream, remove_total)


def lamp_scores(scores: Tensor) -> Tensor:
    """s_u^2 / sum of s_v^2 over v that stay when u goes, float32 of the same shape; the order is kept.

    Scores below 0 (weights already zero) stay as they are. Sums in float64.
    """
    flat = scores.detach().reshape(-1)
    ordered, order = flat.to(torch.float64).clamp_min(0.0).sort(stable=True)
    squares = ordered.square()
    tails = squares.flip(0).cumsum(0).flip(0)
    ratios = torch.where(tails > 0, squares / tails.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    result = torch.empty_like(flat, dtype=torch.float32)
    result[order] = ratios.to(torch.float32)
    return torch.where(flat < 0, flat.to(torch.float32), result).reshape(scores.shape)
