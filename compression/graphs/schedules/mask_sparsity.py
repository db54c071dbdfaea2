"""Sparse training of no more than what a mask says will go."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.graphs.dependencies import Anatomy
from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.schedules.growing_reg import left
from compression.graphs.slices import Slices
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

COURSE = Course("training-mask-sparsity", 0.01)
PENALTY = 0.2


class MaskedSparsity(Hook):
    """Adds the subgradient of penalty * |scale| to the scales of units, bool [units], and, for units that no
    normalisation scales, of penalty * start * |slices|: the norm of all that makes them (biases, too), by the
    norm that it began with, so that large and small ones take as many steps."""

    def __init__(
        self, scales: Slices, makers: Slices, units: Tensor, penalty: float, masters: Mapping[str, Tensor]
    ) -> None:
        self._scales, self._makers, self._penalty = scales, makers, penalty
        self._start = makers.sums(masters).sqrt()
        owned = torch.zeros_like(units)
        for one in scales.slices:
            owned |= torch.zeros(len(units) + 1, dtype=torch.bool).index_fill_(0, one.owners, True)[:-1]
        self._scaled, self._others = units & owned, units & ~owned

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        for one in self._scales.slices:
            scale = masters[one.initializer]
            strength = self._scales.factors(one, self._scaled * self._penalty, 0.0, scale)
            gradient = strength * scale.detach().sign()
            scale.grad = gradient if scale.grad is None else scale.grad + gradient
        norms = self._makers.sums(masters).sqrt()
        pulled = self._others & (norms > 0)
        self._makers.pull(masters, torch.where(pulled, self._penalty * self._start / norms, 0.0))

    def state(self) -> Mapping[str, Tensor]:
        return {"start": self._start}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._start = state["start"]


@SCHEDULES.register
class MaskSparsity:
    """MaskSparsity (Jiang et al. 2022): the criterion says which channels will go; only their scales in
    batch normalisations (norms of their weights, where exporters folded these) are made sparse, those of
    all others are trained without a penalty."""

    name = "mask-sparsity"
    summary = "Only what will go is made sparse: scales of batch normalisations, or norms of weights."
    paper: str | None = "2201.06776"
    trains = True
    scores = False

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        units = work.choose(work.score(work.anatomy))
        trained = GraphTrained(work.anatomy.graph)
        scales = Slices(work.anatomy, batch_norm_scales(work.anatomy) & set(trained.masters))
        makers = Slices(work.anatomy, trained.masters, {"producer", "follower"})
        doomed = scales.numbers(units)
        penalty = PENALTY if work.settings.penalty is None else work.settings.penalty
        watched = scales if scales.slices else makers
        before = watched.sums(trained.masters)[doomed]
        hook = MaskedSparsity(scales, makers, doomed, penalty, trained.masters)
        fit(work, trained, work.loss(trained), COURSE, [hook])
        return Outcome(trained.graph(), units, (left(before, watched.sums(trained.masters)[doomed]),))


def batch_norm_scales(anatomy: Anatomy) -> set[str]:
    """Names of the scales of batch normalisations."""
    return {node.inputs[1] for node in anatomy.graph.nodes if node.operator == "BatchNormalization"}
