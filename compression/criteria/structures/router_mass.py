"""How much the router gives to an expert."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import EXPERTS, Units


@structure_criteria.register
class RouterMass:
    """The sum over the expert's tokens of the weight with which the layer adds its output: as the model's own
    router gives it, divided by the sum over a token's experts where the model does so."""

    name = "router-mass"
    summary = "The sum of the router's weights of the tokens that the expert gets."
    paper = None
    needs = frozenset({"routing"})
    kinds = EXPERTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Sums float64 [units]. ValueError without statistics."""
        return units.used().weights
