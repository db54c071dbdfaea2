"""Wanda's scores of single weights, added over a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class Wanda:
    """sum of |W_ij| ||X_j||_2 over all weights of the unit, biases left out (Sun et al. 2023, for single
    weights)."""

    name = "wanda"
    summary = "Weight magnitude times the norm of its input, added over all weights of the unit."
    paper = "2306.11695"
    needs = frozenset({"activations"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Sums float64 [units]. ValueError without norms."""
        total = torch.zeros(units.count, dtype=torch.float64)
        for piece in units.pieces:
            if piece.bias:
                continue
            if piece.norms is None:
                raise ValueError("Wanda needs the norms of the inputs")
            total += (piece.weight.abs().to(torch.float64) * piece.norms).sum((1, 2)).cpu()
        return total
