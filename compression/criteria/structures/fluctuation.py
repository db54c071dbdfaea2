"""FLAP: how much what a unit adds to the layer's output varies."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class Fluctuation:
    """sum over the unit's outputs x_j of Var(x_j) ||W_:j||_2^2, W being the weight that reads them (An et al.
    2023, equation 5, WIFV): the energy that is lost in the layer's output when x_j is replaced by its
    mean."""

    name = "fluctuation"
    summary = "The variance of what the unit gives times the squared norm of the columns that read it."
    paper = "2312.11983"
    needs = frozenset({"means", "variances"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without statistics."""
        energies = units.output.to(torch.float64).square().sum(2)
        return (units.by_unit(units.measured().variances) * energies).sum(1)
