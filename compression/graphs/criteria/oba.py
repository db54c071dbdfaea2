"""Second-order change of the loss with all interactions of weights."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, given, slice_sums
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class Apoptosis:
    """|sum over the weights w that make a unit of -g w + w (H w) / 2|, with the exact product of the Hessian
    and the vector of all such weights, so that layers interact (Sun et al. 2025, Optimal Brain Apoptosis,
    arXiv:2502.17941): a unit's share of the second-order Taylor expansion of removing them all."""

    name = "oba"
    summary = "A unit's share of the loss's second-order expansion, with exact Hessian-vector products."
    needs = frozenset({"curvature.self"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence)
        total = np.zeros(group.units)
        for site in group.producers():
            weight = anatomy.graph.initializers[site.initializer].astype(np.float64)
            slope = found.of_weight(site.initializer, "gradient")
            bent = found.of_weight(site.initializer, "curvature.self")
            total += slice_sums(weight * (bent / 2 - slope), site)
        return np.abs(total)
