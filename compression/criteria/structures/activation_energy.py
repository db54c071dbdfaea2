"""The share of a channel in what the norms of the residual stream give, before their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import CHANNELS, Units


@structure_criteria.register
class ActivationEnergy:
    """The mean over norms and tokens of n_i^2, n being the normed stream before the norm's weight: what every
    norm loses when the channel goes. In the basis of the stream's principal directions these are the
    eigenvalues of the mean of n n^T (Ashkboos et al. 2024, section 3.3)."""

    name = "activation-energy"
    summary = "The mean square of the channel in the normed residual stream, over all norms and tokens."
    paper = "2401.15024"
    needs = frozenset({"energies"})
    kinds = CHANNELS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [channels]. ValueError without statistics."""
        if units.energies is None:
            raise ValueError("this criterion needs calibration data")
        return units.energies
