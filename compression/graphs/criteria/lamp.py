"""Magnitude made comparable between groups by what stays."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, over_slices
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class GroupLamp:
    """The squared norm of all that a unit owns, divided by that of all units of its group that are not
    smaller (Lee et al. 2021, LAMP, arXiv:2010.07611, with units in the place of weights). The largest
    unit of every group scores 1; scores are meant to be compared over groups as they are."""

    name = "group-lamp"
    summary = "Squared norm over all weights of a unit, over that of the units of its group not below it."
    needs: frozenset[str] = frozenset()

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        sites = group.sites
        norms: Scores = np.sum([over_slices(anatomy, site, np.square) for site in sites], axis=0)
        order = np.argsort(norms, kind="stable")
        above = np.cumsum(norms[order][::-1])[::-1]
        found = np.empty_like(norms)
        found[order] = norms[order] / np.maximum(above, np.finfo(np.float64).tiny)
        return found
