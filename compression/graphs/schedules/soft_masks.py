"""Soft masks: what is masked goes on learning, and may come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compression.graphs.allocation import Chosen
from compression.graphs.masking import mask, masking
from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.slices import Slices
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

COURSE = Course("training-soft-masks", 0.01)
RISING = 0.5
"""Share of the steps in which masks grow to the target."""
CHANGING = 0.75
"""Share of the steps in which masks change."""
CHOICES = 4
"""How often masks are chosen anew in what would be a round."""


class SoftMasks(Hook):
    """Masks over the readers of units. The forward pass sees zero where a unit is masked, the gradient goes
    to the weight behind it as if there were no mask. Meanwhile the importance of every unit gathers, the
    square of the sum of weight times gradient over its readers; by it masks are chosen anew at intervals,
    on a way of equal ratios to the target, masked units among the others."""

    def __init__(self, work: Work, trained: GraphTrained) -> None:
        self._work, self._trained = work, trained
        self._slices = Slices(work.anatomy, trained.masters, {"consumer"})
        self._importance = torch.zeros(self._slices.units, dtype=torch.float64)
        self.masked = torch.zeros(self._slices.units, dtype=torch.bool)
        read = self._slices.counts(trained.masters) > 0
        self._known = {name for name, one in self._slices.by_group(read).items() if one.all()}
        steps = work.settings.steps
        self._every = max(steps // (CHOICES * work.settings.rounds), 1)
        self._rising, self._last = max(round(steps * RISING), 1), max(round(steps * CHANGING), 1)
        self._ends: list[Callable[[], None]] = []
        self.changes = 0

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        reached = {name: one for name, one in masters.items() if one.grad is not None}
        products = {name: one.detach() * one.grad for name, one in reached.items() if one.grad is not None}
        self._importance += self._slices.sums(products, lambda value: value).square()

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        done = step + 1
        if done > self._last or (done % self._every and done != self._last):
            return
        scores = {
            name: one for name, one in self._slices.by_group(self._importance).items() if name in self._known
        }
        share = 1.0 if done == self._last else min(done / self._rising, 1.0)
        units = self._work.choose(scores, share, dict.fromkeys(scores, 1.0))
        masked = self._slices.numbers(units)
        self.changes += int((self.masked & ~masked).sum())
        self.masked = masked
        self._importance.zero_()
        self._put_on()

    def _put_on(self) -> None:
        for end in self._ends:
            end()
        anatomy, module = self._work.anatomy, self._trained.module
        places = [
            (one.initializer, one.axis, self._slices.kept(one, self.masked)) for one in self._slices.slices
        ]
        between = mask(anatomy, self.units()).values
        places += [
            (name, axis, torch.from_numpy(kept)) for name, all_ in between.items() for axis, kept in all_
        ]
        self._ends = [module.watch(name, straight_through(axis, kept)) for name, axis, kept in places]

    def units(self) -> Chosen:
        """What is masked now."""
        return self._slices.chosen(self.masked)

    def state(self) -> Mapping[str, Tensor]:
        return {"importance": self._importance, "masked": self.masked, "changes": torch.tensor(self.changes)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._importance, self.masked = state["importance"], state["masked"]
        self.changes = int(state["changes"])
        self._put_on()


def straight_through(axis: int, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that makes an axis zero where `kept`, bool [size], is not, and lets gradients through as if it
    did not (Bengio, Leonard, Courville 2013, arXiv 1308.3432)."""
    masked = masking(axis, kept)
    return lambda tensor: tensor + (masked(tensor) - tensor).detach()


@SCHEDULES.register
class SoftMasking:
    """SMCP (Humble et al., ECCV 2022): readers of units are masked softly, so that what is masked keeps
    learning and may return, while masks grow to the target. Costs are those of the target; of the paper,
    neither the table of layer times nor the rescaling of batch normalisations is here."""

    name = "soft-masks"
    summary = "Masks grow to the target; what is masked keeps learning, and may return until masks settle."
    paper: str | None = "2211.02206"
    trains = True
    scores = True

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        trained = GraphTrained(work.anatomy.graph)
        masks = SoftMasks(work, trained)
        fit(work, trained, work.loss(trained), COURSE, [masks])
        return Outcome(trained.graph(), masks.units(), (f"Masked channels came back {masks.changes} times.",))
