"""MultiPruner's order of channels and heads: the weights that lead into a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class InputMagnitude:
    """sum of |w| over the weights that lead into the unit, gate and up of a neuron, query, key and value of a
    head; not those that lead out of it, and no biases. Keys and values count once for every query head that
    reads them (Muñoz et al. 2025, MultiPruner, whose code repeats them before it adds)."""

    name = "input-magnitude"
    summary = "The 1-norm of the weights that lead into the unit; needs no data."
    paper = "2501.09949"
    needs = frozenset[str]()
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Norms float64 [units]."""
        into = [piece.weight.to(torch.float64) for piece in units.pieces if not (piece.column or piece.bias)]
        widest = max(weight.shape[1] for weight in into)
        sums = [weight.abs().sum((1, 2)) * (widest / weight.shape[1]) for weight in into]
        return torch.stack(sums).sum(0)
