"""What the readers of a unit lose at least."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class Surgeon:
    """The least error that a unit's readers are left with if their other weights make up for it, over the
    variance of what they give: Optimal Brain Surgeon for the weights of a unit together, layer by layer
    (OBSPA, Wang et al. 2024, arXiv:2403.18955). Meant with the least-squares update."""

    name = "obs"
    summary = "Least error of a unit's readers after the best update of their other weights."
    needs = frozenset({"reading"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, "reading")
