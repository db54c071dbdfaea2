"""CFSP's fine step: a neuron's share of the weights times the size of what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.anatomy.structures import Kind
from compression.criteria.structures import structure_criteria
from compression.criteria.units import Units
from compression.parameters import parameter


@structure_criteria.register
@dataclass(frozen=True)
class Cfsp:
    """mean over the hidden dimensions j of (sum over the weights W of the neuron of |W_nj| / sum_m |W_mj|)
    times ||X_n||_2^c, m running over the layer's neurons and X_n being what neuron n gives (Wang et al. 2024,
    CFSP, equation 6; its code adds gate, up and down alike). Biases are left out."""

    name: ClassVar[str] = "cfsp"
    summary: ClassVar[str] = (
        "The neuron's relative weight in each hidden dimension times its activation's norm."
    )
    paper: ClassVar[str | None] = "2409.13199"
    needs: ClassVar[frozenset[str]] = frozenset({"means", "variances"})
    kinds: ClassVar[frozenset[Kind]] = frozenset({"neuron"})

    cfsp_power: float = parameter(1.0, "CFSP: the exponent c of the activation's norm.", ge=0.0, le=4.0)

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without statistics."""
        norms = units.measured().norms.reshape(units.count, -1).sum(1)
        total = torch.zeros(units.count, dtype=torch.float64, device=norms.device)
        for piece in units.pieces:
            if not piece.bias:
                sizes = piece.weight.to(torch.float64).abs().sum(1)
                total += (sizes / sizes.sum(0).clamp_min(torch.finfo(torch.float64).tiny)).mean(1)
        return total * norms.pow(self.cfsp_power)
