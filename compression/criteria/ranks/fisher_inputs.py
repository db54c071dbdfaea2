"""FWSVD: singular values of the weight whose columns are scaled by their Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.base import ScoresNotFinite, SiteStatistics, needed
from compression.criteria.ranks import rank_criteria
from compression.low_rank import Spectrum, spectrum


@rank_criteria.register
class FisherInputs:
    """Values are singular values of W S, S diagonal: of each input the root of the sum over outputs of the
    mean squared gradient of the loss (Hsu et al. 2022, FWSVD, section 3).

    The paper writes a linear layer as x W with W [in, out] and lets each row of it share one importance; here
    these are the columns of W [out, in]. One of importance zero costs nothing.
    """

    name = "fisher-inputs"
    summary = (
        "Singular values of the weight, each column times the root of the Fisher information (squared "
        "gradients of the loss) of its weights."
    )
    paper = "2207.00112"
    needs = frozenset({"gradient.square"})

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """See `RankCriterion`. Raises ScoresNotFinite."""
        squares = needed(statistics, "gradient.square", weight.device).to(torch.float64)
        scale = squares.sum(0).sqrt()
        if not bool(torch.isfinite(scale).all()):
            raise ScoresNotFinite(f"the Fisher information of {site} is not finite: its gradients overflow")
        return spectrum(weight, scale)
