"""What schedules are given in tests: the small network, its images, half of the multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compression.graphs.allocation import Budget, Chosen, allocate
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import Graph
from compression.graphs.losses import Objective
from compression.graphs.pruning import score_units
from compression.graphs.schedules import SCHEDULES, Outcome, Settings, Work
from tests.engine.graphs.trainable import Memory, Pictures, Silent, read, small_resnet

RATIO = 0.5
TRAINING = sorted(one.name for one in SCHEDULES if one.trains)


def work(memory: Memory | None = None, graph: Graph | None = None, **settings: Any) -> Work:
    """A job on the small network."""
    anatomy = analyse(graph or small_resnet())

    def choose(
        scores: Mapping[str, Scores], share: float = 1.0, scales: Mapping[str, float] | None = None
    ) -> Chosen:
        if scales is None:
            return allocate(anatomy, scores, Budget(RATIO**share))
        scaled = {name: one / scales[name] for name, one in scores.items()}
        return allocate(anatomy, scaled, Budget(RATIO**share), normalise="none")

    def score(changed: Anatomy) -> dict[str, Scores]:
        return score_units(changed, "group-l2")

    made = Settings(**{"steps": 40, "batch_size": 8, "rounds": 3, **settings})
    return Work(
        anatomy, Pictures(), read, Objective(labels=1.0, dense=0.0), made, score, choose, "macs", RATIO,
        memory or Memory(), Silent(),
    )  # fmt: skip


def ran(name: str, given: Work | None = None) -> Outcome:
    """What a schedule makes of a job."""
    return SCHEDULES[name].run(given or work())


def tensor(graph: Graph, name: str) -> torch.Tensor:
    """An initializer in float64."""
    return torch.tensor(graph.initializers[name], dtype=torch.float64)
