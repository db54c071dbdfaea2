"""Sensitivity by the trace of the Hessian."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, given, over_slices, slice_sums
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class HessianTrace:
    """trace(H_u) / (2 p) * ||w_u||^2 over the p weights that make a unit, H_u their block of the Hessian of
    the mean loss (Yu et al. 2022, HAP, arXiv:2101.08940). Negative traces stay negative: such units
    go first."""

    name = "hap"
    summary = (
        "Mean of the Hessian's diagonal over the weights that make a unit, times half their norm squared."
    )
    needs = frozenset({"curvature.trace"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence)
        trace, norm = np.zeros(group.units), np.zeros(group.units)
        count = 0.0
        for site in group.producers():
            diagonal = found.of_weight(site.initializer, "curvature.trace")
            trace += slice_sums(diagonal, site)
            norm += over_slices(anatomy, site, np.square)
            count += site.places.shape[1] * diagonal.size / diagonal.shape[site.axis]
        scores: Scores = trace / (2 * max(count, 1)) * norm
        return scores
