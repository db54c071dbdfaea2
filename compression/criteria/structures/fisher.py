"""Fisher: how much the loss reacts to what a unit gives."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units


@structure_criteria.register
class Fisher:
    """The diagonal of the empirical Fisher information of masks: the mean over sequences of (dL/dm_u)^2, all
    that the unit u gives being multiplied with m_u = 1 (Kwon et al. 2022, equation 6)."""

    name = "fisher"
    summary = "The squared slope of the loss along the unit, averaged over calibration sequences."
    paper = "2204.09656"
    needs = frozenset({"mask.square"})
    kinds = PARTS

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without gradients."""
        if units.masks is None:
            raise ValueError("Fisher scores need the slopes of the loss")
        return units.masks.to(torch.float64)
