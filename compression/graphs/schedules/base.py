"""What schedules of graphs share: the registry, what a schedule is given, and how it trains.

A schedule trains the weights of a graph, whose shapes stay, and says which units go from it so that the
target of the job is met. Nothing of it is cut meanwhile, so that the trained graph with these units masked
equals the cut one, as without training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from compression.errors import RecoveryDiverged
from compression.graphs.allocation import Chosen
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.graph import Graph
from compression.graphs.losses import Objective, Read, objective_loss
from compression.graphs.training import GraphTrained, watching
from compression.recovery.training import Hook, Loss, Plan, Trained, Trainer, derived_seed
from compression.recovery.types import Observer, Store, TrainingData
from compression.registry import Registry

ONE_SHOT = "one-shot"
LOSSES = ("auto", "labels", "dense")


class Choose(Protocol):
    """Which units go, by scores: `share` of the way to the target, in equal ratios (1: the target itself).
    `scales`: what the scores of every group are divided by before groups are compared (None: their means).
    TargetUnreachable."""

    def __call__(
        self, scores: Mapping[str, Scores], share: float = 1.0, scales: Mapping[str, float] | None = None
    ) -> Chosen: ...


@dataclass(frozen=True)
class Settings:
    """The options of a job that schedules look at; None: as the schedule has it."""

    steps: int
    batch_size: int
    rounds: int = 5
    learning_rate: float | None = None
    penalty: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Work:
    """Everything a schedule may use.

    `score` gives the scores of the job's criterion for an anatomy with other weights (groups that it says
    nothing of are left out, and stay whole); `ratio` of `measure` is about what the target leaves.
    """

    anatomy: Anatomy
    data: TrainingData
    read: Read
    objective: Objective
    settings: Settings
    score: Callable[[Anatomy], dict[str, Scores]]
    choose: Choose
    measure: Literal["macs", "parameters"]
    ratio: float
    store: Store
    observer: Observer

    def with_weights(self, graph: Graph) -> Anatomy:
        """The anatomy with other weights of the same shapes."""
        return replace(self.anatomy, graph=graph)

    def loss(self, trained: GraphTrained) -> Loss:
        """The loss of a graph in training."""
        teacher = watching(self.anatomy.graph) if self.objective.needs_dense else None
        return objective_loss(trained.module, teacher, self.read, self.objective)


@dataclass(frozen=True)
class Outcome:
    """The graph as it was trained, the units that go, and what the log says of it."""

    graph: Graph
    units: Chosen
    told: tuple[str, ...] = ()


class GraphSchedule(Protocol):
    """One schedule. `trains` is False for the one that needs no steps; `scores` says whether it has scores of
    its own instead of the criterion's."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def paper(self) -> str | None: ...

    @property
    def trains(self) -> bool: ...

    @property
    def scores(self) -> bool: ...

    def run(self, work: Work) -> Outcome: ...


SCHEDULES: Registry[GraphSchedule] = Registry("schedule of graphs")


@dataclass(frozen=True)
class Course:
    """How a schedule trains where the job does not say otherwise: by descent with Nesterov momentum 0.9 (or
    AdamW), gradients of the loss clipped to norm 1, warm-up over a twentieth of the steps, cosine decay."""

    name: str
    learning_rate: float
    optimiser: Literal["sgd", "adamw"] = "sgd"
    steps: int | None = None

    def plan(self, settings: Settings) -> Plan:
        """The plan of a run, without samples held out: the last state counts, not the best one."""
        return Plan(
            steps=self.steps or settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate or self.learning_rate,
            warmup=0.05,
            seed=derived_seed(settings.seed, "schedule", self.name),
            held_out=0.0,
            optimiser=self.optimiser,
            nesterov=True,
        )


def fit(
    work: Work, trained: Trained, loss: Loss, course: Course, hooks: Sequence[Hook] = ()
) -> dict[str, Any]:
    """Train to the end of a course; its history. RecoveryDiverged where the loss is not finite on the way."""
    plan = course.plan(work.settings)
    history = Trainer(trained, loss, work.data, plan, work.store, work.observer, hooks, course.name).run()
    if history["stopped"] is not None:
        raise RecoveryDiverged(
            f"while units were prepared to go, {history['stopped'].partition(';')[0]}: give a smaller "
            "options.learning_rate or options.penalty"
        )
    return history


def detached(masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of masters as they are now."""
    return {name: value.detach().clone() for name, value in masters.items()}
