"""Half-space projected gradient: groups that make nothing become exactly zero in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, detached, fit
from compression.graphs.slices import Slices
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

COURSE = Course("training-oto", 0.01)
PENALTY = 0.2
SUBGRADIENT = 0.25
"""Share of the steps before the first projection."""
HALF_SPACE = 0.0
"""epsilon: a group is projected where the step leaves the half-space <new, old> >= epsilon |old|^2."""


class HalfSpace(Hook):
    """HSPG on the zero-invariant groups x of units, bool [units] (Chen et al. 2021, algorithm 2): the
    gradient gets lambda x / |x|; after the first `subgradient` steps, a group that a step takes out of the
    half-space of its old self is projected to zero and stays there. lambda is `penalty` times the norm
    that the group began with, so that large and small groups take as many steps."""

    def __init__(self, slices: Slices, units: Tensor, masters: Mapping[str, Tensor], penalty: float,
                 subgradient: int) -> None:  # fmt: skip
        self._slices, self._units, self._penalty, self._from = slices, units, penalty, subgradient
        self._start = slices.sums(masters).sqrt()
        self.zero = torch.zeros_like(units)
        self._before: dict[str, Tensor] = {}

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        norms = self._slices.sums(masters).sqrt()
        pulled = self._units & (norms > 0)
        self._slices.pull(masters, torch.where(pulled, self._penalty * self._start / norms, 0.0))
        names = {one.initializer for one in self._slices.slices}
        self._before = detached({name: masters[name] for name in names})

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        if step >= self._from:
            products = self._slices.sums(
                {name: masters[name].detach().double() * old.double() for name, old in self._before.items()},
                lambda value: value,
            )
            squares = self._slices.sums(self._before)
            self.zero |= self._units & (products <= HALF_SPACE * squares)
        self._slices.zero(masters, self.zero)

    def state(self) -> Mapping[str, Tensor]:
        return {"start": self._start, "zero": self.zero}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._start, self.zero = state["start"], state["zero"]


@SCHEDULES.register
class OnlyTrainOnce:
    """Only Train Once (Chen et al., NeurIPS 2021): what makes a unit and all that follows it until it is
    read is one group, zero of which is as good as removed. HSPG makes groups exactly zero in training.
    Which groups are pressed is settled by the criterion and the target before, as in the second version
    (Chen et al., ICLR 2023), whose networks are sparse to the degree asked for."""

    name = "oto"
    summary = "Groups that the criterion picks are projected to exactly zero in training; then they go."
    paper: str | None = "2107.07467"
    trains = True
    scores = False

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        units = work.choose(work.score(work.anatomy))
        trained = GraphTrained(work.anatomy.graph)
        slices = Slices(work.anatomy, trained.masters, {"producer", "follower"})
        doomed = slices.numbers(units)
        penalty = PENALTY if work.settings.penalty is None else work.settings.penalty
        first = round(work.settings.steps * SUBGRADIENT)
        hook = HalfSpace(slices, doomed, trained.masters, penalty, first)
        fit(work, trained, work.loss(trained), COURSE, [hook])
        zero = int((slices.sums(trained.masters)[doomed] == 0).sum())
        told = f"{zero} of the {int(doomed.sum())} groups that go were exactly zero when training ended."
        return Outcome(trained.graph(), units, (told,))
