"""VBP: how much what a unit gives varies."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class ActivationVariance:
    """sum over the unit's outputs x_j of Var(x_j): what is lost when x_j is replaced by its mean
    (Variance-Based Pruning 2025, there for neurons)."""

    name = "activation-variance"
    summary = "The variance over tokens of what the unit gives; its mean can go into the next bias."
    paper = "2507.12988"
    needs = frozenset({"means", "variances"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without statistics."""
        return units.by_unit(units.measured().variances).sum(1)
