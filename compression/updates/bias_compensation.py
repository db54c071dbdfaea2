"""Bias compensation: what the removed weights gave on average goes into the bias."""

from __future__ import annotations

from compression.criteria.base import needed
from compression.updates import updates
from compression.updates.base import Cut, Task


@updates.register
class BiasCompensation:
    """b + (W - W') E[x]: the mean of every output stays what it was (as in FLAP, An et al. 2023, for
    structures).

    Weights whose outputs have no bias in the model are left as they are.
    """

    name = "bias-compensation"
    summary = "Adds what the removed weights gave on average to the bias, where the model has one."
    paper = "2312.11983"
    needs = frozenset({"activations", "means"})
    starts_over = False

    def apply(self, task: Task, cut: Cut) -> Cut:
        """The same weights with the bias [out] that keeps E[y]."""
        if not task.has_bias:
            return cut
        means = needed(task.statistics, "means", cut.weight.device)
        return Cut(cut.weight, cut.mask, (task.dense - cut.weight) @ means)
