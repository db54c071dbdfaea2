"""Group magnitude: the norm of everything that a unit owns."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import CHANNELS, EXPERTS, PARTS, Units


@structure_criteria.register
class Magnitude:
    """||w||_2 over all weights and biases of the unit."""

    name = "magnitude"
    summary = "The 2-norm of all weights and biases of the unit; needs no data."
    paper = None
    needs = frozenset[str]()
    kinds = PARTS | EXPERTS | CHANNELS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Norms float64 [units]."""
        squares = [piece.weight.to(torch.float64).square().sum((1, 2)) for piece in units.pieces]
        return torch.stack(squares).sum(0).sqrt()
