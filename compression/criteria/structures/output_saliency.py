"""NIRVANA: what removing a unit's weights does to the predictions, to first order."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class OutputSaliency:
    """sum of |w df/dw| over all weights of the unit, f being the height of the predictions (the highest logit
    of each token of the vocabulary at any place of a sequence, averaged over vocabulary and sequences).
    Biases are left out.

    Ai et al. 2025, NIRVANA: setting w to 0 changes f by -w df/dw to first order. Under Adam, whose steps are
    near to -eta sign(dL/dw), the neural tangent kernel is the sum over weights of df/dw sign(dL/dw), so that
    a weight with a small product matters little to the outputs, and with it to how they can still be trained.
    The sum over a unit and the choice of f are those of the authors' published code; the derivation above is
    ours from their abstract. That w df/dw is the slope of f, and the sums, are tested against the stock model
    in float64.
    """

    name = "output-saliency"
    summary = "Weights times the gradients of the predictions themselves, added by magnitude over the unit."
    paper = "2509.14230"
    needs = frozenset({"gradient.output"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without gradients."""
        total = torch.zeros(units.count, dtype=torch.float64)
        for piece in units.pieces:
            if piece.bias:
                continue
            if piece.gradient is None:
                raise ValueError("the saliency of the output needs gradients")
            products = piece.weight.to("cpu", torch.float64) * piece.gradient.to("cpu", torch.float64)
            total += products.abs().sum((1, 2))
        return total
