"""Angular distance between what enters a run of layers and what leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compression.criteria.dropping import LayerEvidence, runs
from compression.criteria.layers import layer_criteria


@layer_criteria.register
class Angular:
    """arccos(cosine similarity) / pi, mean over tokens, added over the runs.

    Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, equation 7.
    """

    name = "angular"
    summary = "Mean angle between the hidden states before and after a run of layers, as a share of pi."
    paper = "2403.17887"
    needs = frozenset({"activations"})

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """In [0, 1] for each run."""
        return sum(angle(evidence.state(start), evidence.state(end)) for start, end in runs(gone))


def angle(before: Tensor, after: Tensor) -> float:
    """before, after: [tokens, hidden]. In float64; a vector of zeros has cosine 0 to everything. In [0,
    1]."""
    return float(torch.acos(cosines(before, after)).mean()) / math.pi


def cosines(before: Tensor, after: Tensor) -> Tensor:
    """Cosine similarity of each token's states: float64 [tokens], in [-1, 1]."""
    first, second = before.to(torch.float64), after.to(torch.float64)
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    cosine = (first * second).sum(-1) / norms.clamp_min(torch.finfo(torch.float64).tiny)
    clamped: Tensor = cosine.clamp(-1.0, 1.0)
    return clamped
