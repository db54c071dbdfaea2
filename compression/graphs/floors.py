"""Units go as long as no task gets worse than it may: sequential pruning with a floor for each task.

Groups are visited in the order of what their next units cost, those of the lowest scores go, and a group is
left when some task's loss, measured with the units closed, would rise beyond its floor; floors are relaxed
from round to round until the budget is met (PAGCP, Performance-aware Approximation of Global Channel Pruning;
there filters by L1 norm and layers by FLOPs, here by any scores).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.errors import TargetUnreachable
from compression.graphs.allocation import Bound, Budget, Chosen, Plan, check_scores
from compression.graphs.batches import Batch, Batches, BatchInvalid, samples_of
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import GraphModule
from compression.graphs.gates import gated
from compression.graphs.removing import closed


@dataclass(frozen=True)
class Task:
    """A task of a network: its loss of every sample [samples] from outputs and batch, and by which share of
    the dense network's mean loss it may rise in the first round."""

    name: str
    loss: Callable[[Mapping[str, Tensor], Batch], Tensor]
    rise: float


@dataclass(frozen=True)
class Floors:
    """How floors are kept. `share`: of a group's units that go in one step; `rounds`: how many at most, the
    rise that is allowed growing by `relax` from one to the next."""

    share: float = 0.125
    rounds: int = 6
    relax: float = 2.0


def choose_above_floors(
    anatomy: Anatomy,
    scores: Mapping[str, Scores],
    batches: Batches,
    tasks: Sequence[Task],
    budget: Budget | Bound,
    how: Floors | None = None,
) -> Chosen:
    """The units that go so that the budget is met and every task stays above its floor, as relaxed in the
    last round. Groups without scores, and those that gates say nothing of, stay whole.

    TargetUnreachable names the share that was reached and the task that stood against more; BatchInvalid
    without batches or tasks.
    """
    if not batches or not tasks:
        raise BatchInvalid("floors need at least one batch and one task to measure")
    check_scores(scores)
    gates = gated(anatomy)
    known = {name: one for name, one in scores.items() if name not in gates.silent}
    plan = Plan(anatomy, known, budget)
    module = GraphModule(gates.graph).eval().requires_grad_(False)

    def losses(chosen: Chosen) -> list[float]:
        parts = [np.array(units, dtype=np.int64) + gates.first[name] for name, units in chosen.items()]
        with closed(module, gates, np.concatenate([np.zeros(0, dtype=np.int64), *parts])):
            return _means(module, anatomy, batches, tasks)

    return _Search(plan, losses, tasks, how or Floors()).run()


class _Search:
    def __init__(
        self, plan: Plan, losses: Callable[[Chosen], list[float]], tasks: Sequence[Task], how: Floors
    ) -> None:
        self.plan, self.losses, self.tasks, self.how = plan, losses, tasks, how
        self.dense = losses({})
        self.counts = dict.fromkeys(plan.limits, 0)
        self.held: dict[str, int] = {}

    def run(self) -> Chosen:
        for turn in range(self.how.rounds):
            allowed = [
                loss + abs(loss) * task.rise * self.how.relax**turn
                for loss, task in zip(self.dense, self.tasks, strict=True)
            ]
            for name in self._order():
                while not self._met() and self._step(name, allowed):
                    pass
            if self._met():
                return self.plan.filled(self.plan.by_count(self.counts))
        dense = max(self.plan.cost({}), np.finfo(np.float64).tiny)
        share = self.plan.cost(self.plan.by_count(self.counts)) / dense
        held = max(self.held, key=lambda one: self.held[one], default="")
        why = f"the task {held!r} would get worse than its floor" if held else "nothing more may go"
        raise TargetUnreachable(
            f"{share:.3f} of the {self.plan.bound.what} stay after {self.how.rounds} rounds, more than "
            f"{self.plan.bound.most / dense:.3f}: {why}; allow a larger rise, more rounds, or a higher ratio"
        )

    def _met(self) -> bool:
        return self.plan.fits(self.plan.by_count(self.counts))

    def _order(self) -> list[str]:
        """Groups by what their next step saves, most first."""
        now = self.plan.cost(self.plan.by_count(self.counts))
        saved = {name: now - self.plan.cost(self.plan.by_count(self._more(name))) for name in self.counts}
        return sorted(saved, key=lambda name: -saved[name])

    def _more(self, name: str) -> dict[str, int]:
        units = len(self.plan.scores[name])
        step = max(math.ceil(self.how.share * units), self.plan.steps[name])
        return self.counts | {name: min(self.counts[name] + step, self.plan.limits[name])}

    def _step(self, name: str, allowed: list[float]) -> bool:
        """Take the next units of a group, if all tasks allow it."""
        counts = self._more(name)
        if counts[name] == self.counts[name]:
            return False
        found = self.losses(self.plan.by_count(counts))
        for task, loss, most in zip(self.tasks, found, allowed, strict=True):
            if not loss <= most:
                self.held[task.name] = self.held.get(task.name, 0) + 1
                return False
        self.counts = counts
        return True


def _means(module: GraphModule, anatomy: Anatomy, batches: Batches, tasks: Sequence[Task]) -> list[float]:
    totals = [0.0] * len(tasks)
    samples = 0
    with torch.no_grad():
        for batch in batches:
            outputs = module.run(batch.inputs)
            samples += samples_of(anatomy.probe, batch)
            for place, task in enumerate(tasks):
                totals[place] += float(task.loss(outputs, batch).double().sum())
    return [total / samples for total in totals]
