"""Squared first-order change of the loss, over all weights of a unit."""

from __future__ import annotations

from compression.graphs.costs import CostModel
from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class HessianAware:
    """The mean over batches of (sum of g w)^2 over all weights that go with the unit (Yang et al. 2023, NViT,
    arXiv:2110.04869), which is comparable over layers and kinds of units."""

    name = "hessian-aware"
    summary = "Mean over batches of the squared sum of gradient times weight, over all weights of a unit."
    needs = frozenset({"gradient.group"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, "gradient.group")


@CRITERIA.register
class HessianAwarePerCost:
    """The same by the share of the dense multiply-accumulates that go with the unit. NViT subtracts what a
    table of latencies says; here units are ranked by loss for what they cost."""

    name = "hessian-aware-per-mac"
    summary = "The same, over the share of multiply-accumulates that go with a unit."
    needs = HessianAware.needs

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        found = given(evidence).of(group, "gradient.group")
        if found is None:
            return None
        model = CostModel(anatomy)
        dense = model.without({}).macs
        saved = (dense - model.without({group.name: [0]}).macs) / max(dense, 1)
        # a unit that saves nothing is the dearest; one multiply-accumulate stands in for none
        return found / max(saved, 1 / max(dense, 1))
