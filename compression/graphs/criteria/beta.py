"""How much a unit's filters change the data that pass them."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, given, slice_sums
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class FilterChange:
    """Mean |w| of a unit's filters times the sum over positions of the deviation of what they give by that of
    what they read (Homayounfar et al. 2023, Beta-Rank, arXiv:2304.07461; summed where several tensors make a
    unit). Groups that no convolution or matrix makes stay whole."""

    name = "beta-rank"
    summary = "Mean |w| of a unit's filters times by how much the deviation of the data grows in them."
    needs = frozenset({"change"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence)
        sites = [site for site in group.producers() if site.initializer in found.weights.get("change", {})]
        sums = [slice_sums(found.of_weight(site.initializer, "change"), site) for site in sites]
        total: Scores = np.sum(sums, axis=0)
        return total if sums else None
