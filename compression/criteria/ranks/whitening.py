"""SVD-LLM: singular values of the weight times a root of the second moment of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics, needed
from compression.criteria.ranks import rank_criteria
from compression.low_rank import Spectrum, root, spectrum
from compression.parameters import parameter


@rank_criteria.register
@dataclass(frozen=True)
class Whitening:
    """Values are singular values of W S with S the Cholesky factor of X X^T + d I, X [in, tokens] the inputs.

    Without some of them, ||(W - W') S||_F^2, which is ||(W - W') X||_F^2 but for d, is the sum of their
    squares (Wang et al. 2024, SVD-LLM, section 3.1).
    """

    name: ClassVar[str] = "whitening"
    summary: ClassVar[str] = (
        "Singular values of the weight times the Cholesky factor of the second moment of its inputs: each is "
        "what the outputs lose without it."
    )
    paper: ClassVar[str | None] = "2403.07378"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    whitening_damping: float = parameter(
        1e-4, "Added to the second moment of inputs, relative to the mean of its diagonal.", gt=0.0, le=10.0
    )

    def spectrum(
        self, weight: Tensor, statistics: SiteStatistics | None, site: str, generator: torch.Generator
    ) -> Spectrum:
        """See `RankCriterion`. Raises NotFactored."""
        moment = needed(statistics, "hessian", weight.device)
        return spectrum(weight, root(moment, self.whitening_damping, site))
