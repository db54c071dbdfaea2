"""REAP: how much an expert adds to the layer's output where it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import EXPERTS, Units


@structure_criteria.register
class ExpertOutput:
    """The mean over the tokens x that the router sends to the expert of g(x) ||f(x)||_2, g being the router's
    weight as the model uses it and f(x) the expert's output (Lasby et al. 2025, REAP). An expert without
    tokens scores 0."""

    name = "expert-output"
    summary = "Router weight times the norm of the expert's output, mean over the expert's tokens."
    paper = "2510.13999"
    needs = frozenset({"routing", "expert.norms"})
    kinds = EXPERTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Means float64 [units]. ValueError without statistics."""
        use = units.used()
        return use.norms / use.counts.clamp(min=1)
