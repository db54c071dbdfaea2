"""Minitron: how large what a unit gives is."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import CHANNELS, PARTS, Units


@structure_criteria.register
class ActivationNorm:
    """The 2-norm over sequences of the mean over tokens of ||x_u||_2, x_u being what the unit gives: one
    number for a neuron, the attention's output of a head, and of a hidden channel what each norm gives,
    summed over all norms (Muralidharan et al. 2024, section 2.2: aggregation L2 over the batch, mean over the
    sequence)."""

    name = "activation-norm"
    summary = "The size of what the unit gives: mean over a sequence's tokens, 2-norm over sequences."
    paper = "2407.14679"
    needs = frozenset({"magnitudes"})
    kinds = PARTS | CHANNELS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without statistics."""
        return units.measured().magnitudes if units.magnitudes is None else units.magnitudes
