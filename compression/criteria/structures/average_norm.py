"""2SSP's first stage: how large what a unit gives is, sequence by sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class AverageNorm:
    """The mean over sequences of the 2-norm over a sequence's tokens of x_u, x_u being what the unit gives:
    one number for a neuron, between activation and down projection (Sandri et al. 2025, 2SSP);
    for a head, which the paper does not score, the 2-norm over its outputs too."""

    name = "average-norm"
    summary = "The 2-norm over a sequence's tokens of what the unit gives, averaged over sequences."
    paper = "2501.17771"
    needs = frozenset({"lengths"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without statistics."""
        return units.measured().lengths
