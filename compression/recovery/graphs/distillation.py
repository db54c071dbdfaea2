"""Training of all weights of a cut graph, towards the dense graph's outputs or by labels.

(Hinton, Vinyals, Dean 2015, arXiv 1503.02531; values on the way: Romero et al. 2015, arXiv 1412.6550.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from compression.errors import RecoveryImpossible
from compression.evaluation.types import Batch
from compression.graphs.graph import Graph
from compression.graphs.losses import Objective, objective_loss
from compression.graphs.removal import Kept
from compression.graphs.training import GraphTrained, watching
from compression.graphs.unfolding import fold, folded_convolutions
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import (
    GraphRecoveryContext,
    GraphRecoveryResult,
    ImageOptions,
    has_norms,
)
from compression.recovery.graphs.batchnorm import kept, unfolded
from compression.recovery.graphs.feed import Feed
from compression.recovery.training import Hook, Loss, Plan, Trainer, derived_seed, indices_at, split

RATES = {"sgd": (0.01, 0.002), "adamw": (1e-3, 3e-4)}
"""Peak learning rates where a job names none: of graphs with BatchNorms, and of those without, which diverge
at rates that the others bear (of a ResNet-20 with folded norms 25 steps at 0.02 made four times the loss)."""
NORM_IMAGES = 1024
"""So many images measure the statistics of BatchNorms anew before the first step."""
HELD_OUT = 512
"""So many images are held out at most."""


class GraphTrainingOptions(ImageOptions):
    """Options of training a cut graph."""

    loss: Literal["distillation", "task"] = Field(
        "distillation",
        description="What is minimised: the distance to the dense graph's outputs, or the cross entropy of "
        "the labels.",
    )
    temperature: float = Field(4.0, gt=0, le=100, description="Temperature of the distillation loss.")
    feature_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Weight of the distance to the dense graph's values where blocks part and before the "
        "classifier, each relative to its size; 0: they are free.",
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd", description="Gradient descent with Nesterov's momentum, or AdamW."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Peak learning rate; by default 0.01 of sgd and 0.001 of adamw, of graphs whose "
        "BatchNorms were folded and not put back 0.002 and 0.0003.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="Weight decay: part of the gradient of sgd, decoupled in adamw."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    clip: float = Field(5.0, gt=0, description="Largest norm of the gradient; a longer one is scaled down.")
    unfold: bool = Field(
        True,
        description="Convolutions of a graph without any normalisation, into which exporters folded their "
        "BatchNorms, are trained with BatchNorms behind them, which are folded again at the end.",
    )
    held_out: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of the recovery data (512 images at most) that is not trained on and chooses the "
        "best state.",
    )
    evaluate_every: int = Field(25, ge=1, description="Steps between looks at the held-out share.")
    save_every: int = Field(50, ge=1, description="Steps between checkpoints.")

    def rate(self, *, norms: bool) -> float:
        """The peak learning rate of a graph with BatchNorms, or without."""
        return RATES[self.optimiser][0 if norms else 1] if self.learning_rate is None else self.learning_rate


class KeptZero(Hook):
    """Weights that went are zero after every step."""

    def __init__(self, masks: Mapping[str, Kept]) -> None:
        self._gone = {name: torch.from_numpy(~kept) for name, kept in masks.items()}

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        for name, gone in self._gone.items():
            if name in masters:
                masters[name].masked_fill_(gone.to(masters[name].device), 0.0)


@graph_recoveries.register
class GraphDistillation:
    """Trains all weights towards the dense graph's outputs, or by labels."""

    name = "distillation"
    title = "Distillation from the dense graph"
    summary = (
        "Trains every weight that is left so that the outputs follow the dense graph's, or (loss task) by "
        "labels. BatchNorms are measured anew first and learn with the rest."
    )
    options: type[BaseModel] = GraphTrainingOptions

    def check(self, graph: Graph, batch: int | None) -> None:
        """Raises RecoveryImpossible for a graph that takes several images at once and no other number."""
        if batch not in (None, 1):
            raise RecoveryImpossible(
                f"the model takes {batch} images at once and no other number: export it with a free batch"
            )

    def recover(self, context: GraphRecoveryContext) -> GraphRecoveryResult:
        """Raises RecoveryImpossible, RecoveryDiverged, DatasetInvalid, pydantic.ValidationError (options)."""
        options = GraphTrainingOptions.model_validate(dict(context.options))
        self.check(context.graph, context.batch)
        if options.loss == "task" and context.data.labels is None:
            raise RecoveryImpossible(
                "the loss 'task' needs a recovery dataset with labels; use the loss 'distillation'"
            )
        plan = plan_of(context, options)
        training, _ = split(len(context.data), plan)
        alone = context.batch == 1
        graph, facts = context.graph, None
        count = max(1, NORM_IMAGES // plan.batch_size)
        if not alone and has_norms(graph):
            graph, facts = kept(context, training, plan.batch_size, count)
        elif not alone and options.unfold:
            graph, facts = unfolded(context, training, plan.batch_size, count)
        trained = GraphTrained(graph, frozen=alone)
        loss = loss_of(context, options, trained)
        with Feed(context.data, maker(context, options, plan, training), plan.steps, context.threads) as feed:
            hooks = [KeptZero(context.masks)] if context.masks else []
            trainer = Trainer(trained, loss, feed, plan, context.store, context.observer, hooks, feed=feed.at)
            history = trainer.run()
            history["loading"] = feed.facts()
        if facts is not None:
            history["statistics"] = facts
        history |= {
            "loss": options.loss,
            "options": options.model_dump(mode="json") | {"learning_rate": plan.learning_rate},
        }
        return GraphRecoveryResult(self.name, fold(trained.graph(), context.graph), history)


def normalised(context: GraphRecoveryContext, options: GraphTrainingOptions) -> bool:
    """Whether BatchNorms normalise while the graph is trained: its own, or those put back for it."""
    put_back = options.unfold and context.batch != 1 and bool(folded_convolutions(context.graph))
    return has_norms(context.graph) or put_back


def plan_of(context: GraphRecoveryContext, options: GraphTrainingOptions) -> Plan:
    """Steps, optimiser and what is held out."""
    return Plan(
        steps=context.steps,
        batch_size=min(options.batch_size, len(context.data)),
        learning_rate=options.rate(norms=normalised(context, options)),
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip=options.clip,
        seed=derived_seed(context.seed, "recovery"),
        held_out=options.held_out,
        held_out_most=HELD_OUT,
        evaluate_every=options.evaluate_every,
        save_every=options.save_every,
        optimiser=options.optimiser,
        momentum=options.momentum,
        nesterov=True,
    )


def loss_of(context: GraphRecoveryContext, options: GraphTrainingOptions, trained: GraphTrained) -> Loss:
    """The loss that the options name, of batches of images; the dense graph is loaded only if it teaches."""
    follows = options.loss == "distillation"
    weighed = [replace(one, weight=options.feature_weight) for one in context.inner]
    what = Objective(
        labels=0.0 if follows else 1.0,
        dense=1.0 if follows else 0.0,
        temperature=options.temperature,
        inner=tuple(weighed) if options.feature_weight else (),
    )
    teacher = watching(context.dense) if what.needs_dense else None
    loss = objective_loss(trained.module, teacher, context.fed, what)
    return loss if context.batch is None else one_by_one(loss)


def one_by_one(loss: Loss) -> Loss:
    """The mean loss of a batch for a graph that takes a single sample."""

    def whole(batch: Batch) -> Tensor:
        count = len(next(iter(batch.values())))
        parts = [{name: value[at : at + 1] for name, value in batch.items()} for at in range(count)]
        return torch.stack([loss(part) for part in parts]).mean()

    return whole


def maker(
    context: GraphRecoveryContext, options: GraphTrainingOptions, plan: Plan, training: list[int]
) -> Callable[[int], Batch]:
    """What makes the batch of a step: its images, each changed as in its epoch."""
    seed, count = derived_seed(context.seed, "augmentation"), len(training)

    def make(step: int) -> Batch:
        first = step * plan.batch_size
        epochs = [(first + place) // count for place in range(plan.batch_size)]
        return context.data.augmented(indices_at(step, training, plan), epochs, options.augmentation, seed)

    return make
