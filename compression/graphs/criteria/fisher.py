"""Second-order change of the loss by the Fisher information."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class GroupFisher:
    """Half the mean over samples of g^2, g the derivative of a sample's loss with respect to a factor of the
    unit at all places where it is read (Liu et al. 2021, group Fisher pruning, arXiv:2108.00708)."""

    name = "group-fisher"
    summary = "Half the mean squared derivative of a sample's loss by a factor of the unit."
    needs = frozenset({"gradient.square"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence).of(group, "gradient.square")
        return None if found is None else found / 2
