"""Relevance for the decisions of the network."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class Relevance:
    """The mean size of a unit's layer-wise relevance for the class of a sample (Yeom et al. 2021,
    arXiv:1912.08881, with the epsilon rule; see `relevance.py` for what each operator does)."""

    name = "lrp"
    summary = "Mean size of a unit's layer-wise relevance for the class of a sample."
    needs = frozenset({"relevance"})

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, "relevance")
