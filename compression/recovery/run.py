"""What the recoveries that train have in common: from options to written weights."""

from __future__ import annotations

from torch import nn

from compression.errors import RecoveryImpossible
from compression.evaluation import stock
from compression.evaluation.types import CLASSIFICATION, FEATURES, IMAGES
from compression.recovery import losses
from compression.recovery.output import write_weights
from compression.recovery.registry import TrainingOptions
from compression.recovery.training import Loss, Plan, Trained, Trainer, derived_seed
from compression.recovery.types import RecoveryContext, RecoveryResult


def check_loss(options: TrainingOptions, context: RecoveryContext) -> None:
    """Raises RecoveryImpossible when the model, or the data, has no loss of its own and one is asked for."""
    if options.loss != "task":
        return
    if context.task == FEATURES:
        raise RecoveryImpossible(
            "a model without a head has no loss of its own to train on; use the loss 'distillation'"
        )
    if context.task in (CLASSIFICATION, IMAGES) and "labels" not in context.data.batch([0]):
        raise RecoveryImpossible(
            "the loss 'task' needs a recovery dataset with labels; use the loss 'distillation'"
        )


def width(model: nn.Module) -> int:
    """The hidden width of a stock model."""
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


def train(
    context: RecoveryContext,
    options: TrainingOptions,
    model: nn.Module,
    trained: Trained,
    default_rate: float,
) -> RecoveryResult:
    """Train what ``trained`` holds of ``model`` and write it. Raises RecoveryDiverged."""
    rate = options.learning_rate if options.learning_rate is not None else default_rate
    plan = Plan(
        steps=context.steps,
        batch_size=min(options.batch_size, len(context.data)),
        learning_rate=rate,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip=options.clip,
        seed=derived_seed(context.seed, "recovery"),
        held_out=options.held_out,
        evaluate_every=options.evaluate_every,
        save_every=options.save_every,
    )
    loss = _loss(context, options, model)
    history = Trainer(trained, loss, context.data, plan, context.store, context.observer).run()
    names, files = write_weights(context, trained.weights())
    history |= {"loss": options.loss, "options": options.model_dump(mode="json") | {"learning_rate": rate}}
    return RecoveryResult(context.method, tuple(names), tuple(files), history)


def _loss(context: RecoveryContext, options: TrainingOptions, student: nn.Module) -> Loss:
    """The loss that the options name; the dense model is loaded only when it teaches."""
    if options.loss == "task":
        return losses.task_loss(student, context.task)
    teacher = stock.load(context.dense, context.task, device=context.device).requires_grad_(False)
    return losses.distillation(student, teacher, context.task, options.temperature, context.rows)
