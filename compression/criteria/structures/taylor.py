"""LLM-Pruner: what removing a unit does to the loss, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units
from compression.parameters import parameter


@structure_criteria.register
@dataclass(frozen=True)
class Taylor:
    """First-order change of the loss, g being its mean gradient over sequences (Ma et al. 2023, equations 3
    to 5): "element" adds |w g| over all weights of the unit, "vector" adds |sum of w g| over its tensors.
    Biases are left out."""

    name: ClassVar[str] = "taylor"
    summary: ClassVar[str] = "Weights times gradients, added over the unit: the loss's first-order change."
    paper: ClassVar[str | None] = "2305.11627"
    needs: ClassVar[frozenset[str]] = frozenset({"gradient.mean"})
    kinds = PARTS

    taylor_form: str = parameter(
        "element",
        "Whether products of weight and gradient are added by magnitude, or with their signs in a tensor.",
        kind=Literal["element", "vector"],
    )

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without gradients."""
        total = torch.zeros(units.count, dtype=torch.float64)
        for piece in units.pieces:
            if piece.bias:
                continue
            if piece.gradient is None:
                raise ValueError("Taylor scores need gradients")
            products = piece.weight.to("cpu", torch.float64) * piece.gradient.to("cpu", torch.float64)
            vector = self.taylor_form == "vector"
            total += products.sum((1, 2)).abs() if vector else products.abs().sum((1, 2))
        return total
