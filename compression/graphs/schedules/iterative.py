"""Rounds: a part of the way, some steps of recovery, scores anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from compression.graphs.allocation import Chosen
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.graph import Graph
from compression.graphs.masking import mask, masking, zeroed_places
from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.training import GraphTrained
from compression.recovery.training import Hook

NAME = "training-iterative"
FIRST = -1e9
"""The relative score of units that went in an earlier round."""


class KeptZero(Hook):
    """Where a mask removes, masters are zero after every step."""

    def __init__(self, anatomy: Anatomy, units: Chosen) -> None:
        self._gone = [
            (name, axis, torch.from_numpy(places)) for name, axis, places in zeroed_places(anatomy, units)
        ]

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        for name, axis, places in self._gone:
            if name in masters:
                master = masters[name]
                shape = [1] * master.ndim
                shape[axis] = -1
                master.masked_fill_(places.reshape(shape).to(master.device), 0.0)


@SCHEDULES.register
class Iterative:
    """Rounds of equal ratios: after round r of k, (target / dense)^(r/k) of the costs are left. A round
    scores what is there, masks the units that go in it, and trains the rest for steps / k steps; what went
    stays away. After the last round the graph is trained, too (Han et al. 2015; Molchanov et al. 2017)."""

    name = "iterative"
    summary = "Rounds of equal ratios: some units go, the rest is trained for some steps and scored anew."
    paper: str | None = "1611.06440"
    trains = True
    scores = False

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        rounds = min(work.settings.rounds, work.settings.steps)
        graph, units = work.anatomy.graph, Chosen()
        told = []
        for number in range(1, rounds + 1):
            scores, scales = with_first(work.score(work.with_weights(graph)), units)
            units = together(units, work.choose(scores, number / rounds, scales))
            graph = self._round(work, graph, units, number, rounds)
            told.append(f"Round {number} of {rounds}: {sum(map(len, units.values()))} channels are away.")
        return Outcome(graph, units, tuple(told))

    def _round(self, work: Work, graph: Graph, units: Chosen, number: int, rounds: int) -> Graph:
        masked = mask(work.with_weights(graph), units)
        trained = GraphTrained(masked.graph)
        for value, masks in masked.values.items():
            for axis, kept in masks:
                trained.module.watch(value, masking(axis, torch.from_numpy(kept)))
        steps = work.settings.steps * number // rounds - work.settings.steps * (number - 1) // rounds
        course = Course(f"{NAME}-{number:02d}", 0.01, steps=steps)
        fit(work, trained, work.loss(trained), course, [KeptZero(work.anatomy, units)])
        return trained.graph()


def together(first: Chosen, second: Chosen) -> Chosen:
    """The units of both: a choice brings back what would still fit, and what went has not learnt since."""
    names = [*first, *(name for name in second if name not in first)]
    return {name: sorted({*first.get(name, ()), *second.get(name, ())}) for name in names}


def with_first(
    scores: Mapping[str, Scores], units: Mapping[str, list[int]]
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Scores with which `units` go before all others, and what to divide those of each group by: the mean
    over the units that are left."""
    found: dict[str, Scores] = {}
    scales: dict[str, float] = {}
    for name, one in scores.items():
        left = np.ones(len(one), dtype=np.bool_)
        left[units.get(name, [])] = False
        mean = float(one[left].mean()) if left.any() else 1.0
        scales[name] = max(mean, float(np.finfo(np.float64).tiny))
        found[name] = np.where(left, one, FIRST * scales[name])
    return found, scales
