"""Growing regularisation: the units that will go are pressed harder and harder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.slices import Slices
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

COURSE = Course("training-growing-reg", 0.01)
PENALTY = 1.0
EVERY = 5
"""Steps between two rises of the penalty."""
RISING = 0.75
"""Share of the steps in which the penalty rises; then it stays, until the weights are still."""


class Rising(Hook):
    """Adds the gradient of half the penalty times |w|^2 over the slices of units, bool [units]; the penalty
    rises in equal parts every few steps."""

    def __init__(self, slices: Slices, units: Tensor, steps: int, penalty: float) -> None:
        self._slices, self._units = slices, units.double()
        self._rises, self._most = max(round(steps * RISING) // EVERY, 1), penalty

    def penalty(self, step: int) -> float:
        """The penalty of a step (from 0)."""
        return self._most * min(step // EVERY + 1, self._rises) / self._rises

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        self._slices.pull(masters, self._units * self.penalty(step))


@SCHEDULES.register
class GrowingRegularisation:
    """GReg-1 (Wang, Qin, Zhang, Fu, ICLR 2021): the units that the criterion picks, with all that makes and
    reads them, get an L2 penalty that grows from step to step up to `penalty` and then stays, so that the
    network moves what they did elsewhere before they go."""

    name = "growing-reg"
    summary = "The units picked get an L2 penalty that grows from step to step; then they go."
    paper: str | None = "2012.09243"
    trains = True
    scores = False

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        units = work.choose(work.score(work.anatomy))
        trained = GraphTrained(work.anatomy.graph)
        slices = Slices(work.anatomy, trained.masters)
        doomed = slices.numbers(units)
        before = slices.sums(trained.masters)[doomed]
        steps, penalty = work.settings.steps, work.settings.penalty
        rising = Rising(slices, doomed, steps, PENALTY if penalty is None else penalty)
        fit(work, trained, work.loss(trained), COURSE, [rising])
        return Outcome(trained.graph(), units, (left(before, slices.sums(trained.masters)[doomed]),))


def left(before: Tensor, after: Tensor) -> str:
    """What the log says of the squares of the weights that go, [units], before and after training."""
    share = float(after.sum() / before.sum().clamp(min=torch.finfo(torch.float64).tiny)) ** 0.5
    return f"What goes has {share:.2g} of the norm that it had before training."
