"""Group sparsity over all that hangs together, stronger where a unit is weak."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.graphs.dependencies import Anatomy
from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.slices import Slices
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

COURSE = Course("training-group-lasso", 0.01)
PENALTY = 0.003
ALPHA = 4.0


class GroupSparsity(Hook):
    """Adds the gradient of half the penalty times the sum over units of strength * |slices|^2, with the
    strengths of `strengths`. Units of groups that are not `scored` are left alone."""

    def __init__(self, slices: Slices, scored: Tensor, penalty: float) -> None:
        self._slices, self._scored, self._penalty = slices, scored, penalty

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        shrinking = strengths(self._slices, self._slices.sums(masters))
        self._slices.pull(masters, torch.where(self._scored, self._penalty * shrinking, 0.0))


def strengths(slices: Slices, importance: Tensor, alpha: float = ALPHA) -> Tensor:
    """By unit, 2^(alpha (I_max - I) / (I_max - I_min)) with the largest and the least importance of its
    group (Fang et al. 2023, eq. 5): between 1 for the strongest unit and 2^alpha for the weakest."""
    found = torch.empty_like(importance)
    for name, at in slices.first.items():
        one = importance[at : at + slices.groups[name]]
        spread = one.max() - one.min()
        relative = (one.max() - one) / spread if spread > 0 else torch.zeros_like(one)
        found[at : at + slices.groups[name]] = 2.0 ** (alpha * relative)
    return found


@SCHEDULES.register
class GroupLasso:
    """Sparse training of DepGraph (Fang et al., CVPR 2023): the squared norm of all that hangs together in a
    unit is penalised, up to 16 times as much for the weakest unit of a group as for the strongest. Then the
    trained graph is scored and units are chosen."""

    name = "group-lasso"
    summary = "All units are made sparse, weak ones up to 16 times as much; those that got weakest go."
    paper: str | None = "2301.12900"
    trains = True
    scores = False

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        trained = GraphTrained(work.anatomy.graph)
        slices = Slices(work.anatomy, trained.masters)
        penalty = PENALTY if work.settings.penalty is None else work.settings.penalty
        hook = GroupSparsity(slices, scored(work, slices), penalty)
        fit(work, trained, work.loss(trained), COURSE, [hook])
        anatomy: Anatomy = work.with_weights(trained.graph())
        units = work.choose(work.score(anatomy))
        squares, gone = slices.sums(trained.masters), slices.numbers(units)
        share = float(squares[gone].sum() / squares.sum())
        told = f"What goes has {share:.2g} of the squared weights of all channels after training."
        return Outcome(anatomy.graph, units, (told,))


def scored(work: Work, slices: Slices) -> Tensor:
    """The units of groups that the criterion says something of, bool [units]."""
    return slices.numbers({name: range(len(one)) for name, one in work.score(work.anatomy).items()})
