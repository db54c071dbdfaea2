"""Weight times gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, needed


@criteria.register
class Gradient:
    """E|w * g|, the first-order change of the loss of a sequence when the weight goes (Molchanov et al.
    2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, equation 8, for single
    weights).
    """

    name = "gradient"
    summary = "Weight times the mean absolute gradient of the loss: the first-order cost of removal."
    paper = "1611.06440"
    needs = frozenset({"gradient.absolute"})

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]."""
        return weight.to(torch.float32).abs() * needed(statistics, "gradient.absolute", weight.device)
