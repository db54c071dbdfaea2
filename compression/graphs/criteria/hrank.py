"""Rank of feature maps."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class FeatureRank:
    """The mean rank of a unit's feature maps (Lin et al. 2020, HRank, arXiv:2002.10179). Groups whose
    units are no maps stay whole."""

    name = "hrank"
    summary = "Mean rank of a unit's feature maps; groups without maps stay whole."
    needs = frozenset({"activation.rank"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, "activation.rank")
