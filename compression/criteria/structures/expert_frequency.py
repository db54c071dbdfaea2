"""How often an expert is used."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import EXPERTS, Units


@structure_criteria.register
class ExpertFrequency:
    """The share of tokens that the router sends to the expert, however little it weighs them."""

    name = "expert-frequency"
    summary = "The share of tokens that the router sends to the expert."
    paper = None
    needs = frozenset({"routing"})
    kinds = EXPERTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Shares float64 [units]. ValueError without statistics."""
        use = units.used()
        return use.counts.to(torch.float64) / max(1, use.tokens)
