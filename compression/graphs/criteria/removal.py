"""The loss without a unit, measured."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class LossOfRemoval:
    """By how much the mean loss rises without the unit (the saliency of PAGCP, where it is estimated; here
    it is measured)."""

    name = "loss-of-removal"
    summary = "Rise of the mean loss without the unit, measured; a forward pass for each unit."
    needs = frozenset({"removal"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, "removal")
