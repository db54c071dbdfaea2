"""Redundancy of filters."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class GeometricMedian:
    """The sum of a unit's distances to all others of its group, each unit being the vector of the weights
    that make it (He et al. 2019, FPGM, arXiv:1811.00250): a unit near the geometric median can be
    replaced by the others."""

    name = "fpgm"
    summary = "Sum of the distances of a unit's filters to those of the other units of its group."
    needs: frozenset[str] = frozenset()

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        rows = []
        for site in group.producers():
            array = anatomy.graph.initializers[site.initializer].astype(np.float64)
            if array.ndim > 1:
                rows.append(np.moveaxis(array, site.axis, 0)[site.places].reshape(group.units, -1))
        if not rows:
            return None
        filters = np.concatenate(rows, axis=1)
        squares = (filters**2).sum(1)
        apart = squares[:, None] + squares[None, :] - 2 * filters @ filters.T
        np.fill_diagonal(apart, 0)
        found: Scores = np.sqrt(np.maximum(apart, 0)).sum(1)
        return found
