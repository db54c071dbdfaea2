"""Sizes and variance of activations."""

from __future__ import annotations

from compression.graphs.criteria.base import CRITERIA, Scores, given
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


class Activation:
    """A mean over activations of a unit, where it is read."""

    def __init__(self, name: str, need: str, summary: str) -> None:
        self.name = name
        self.summary = summary
        self.needs = frozenset({need})
        self._need = need

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        return given(evidence).of(group, self._need)


CRITERIA.register(
    # Zhao et al. 2022, Adaptive Activation-based Structured Pruning, arXiv:2201.10520: mean of |A|^p
    Activation("attention-l1", "activation.magnitude", "Mean of |a| of a unit: its attention map, power 1.")
)
CRITERIA.register(
    Activation("attention-l2", "activation.square", "Mean of a^2 of a unit: its attention map, power 2.")
)
CRITERIA.register(
    # Berisha et al. 2025, Variance-Based Pruning, arXiv:2507.12988; meant with compensation of the mean
    Activation("variance", "activation.variance", "Variance of a unit: what its mean cannot stand in for.")
)
