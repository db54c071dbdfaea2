"""First-order change of the loss."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class Taylor:
    """|sum over samples of g|, g the derivative of the loss with respect to a factor of the unit: what the
    loss would change by, to first order, if the unit went (Molchanov et al. 2017, arXiv:1611.06440)."""

    name = "taylor"
    summary = "Size of the first-order change of the loss without the unit."
    needs = frozenset({"gradient.sum"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence).of(group, "gradient.sum")
        return None if found is None else np.abs(found)
