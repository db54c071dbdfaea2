"""The recoveries by name, and the one call that runs them."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

import compression.recovery
from compression.recovery.types import RecoveryContext, RecoveryResult
from compression.registry import Registry, discover


class Recovery(Protocol):
    """One way of buying quality back. ``options`` is a pydantic model that forbids unknown keys."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def recover(self, context: RecoveryContext) -> RecoveryResult: ...


recoveries: Registry[Recovery] = Registry("recovery")


class NoOptions(BaseModel):
    """A recovery without anything to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingOptions(BaseModel):
    """What every recovery that trains lets the user choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW; by default one that suits the model's width.",
    )
    batch_size: int = Field(8, ge=1, le=1024, description="Samples a step.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; a longer one is scaled down.")
    loss: Literal["distillation", "task"] = Field(
        "distillation",
        description="What is minimised: the distance to the dense model's outputs, or the task's own loss.",
    )
    temperature: float = Field(1.0, gt=0, le=100, description="Temperature of the distillation loss.")
    held_out: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of the recovery data that is not trained on and chooses the best state.",
    )
    evaluate_every: int = Field(25, ge=1, description="Steps between looks at the held-out share.")
    save_every: int = Field(50, ge=1, description="Steps between checkpoints.")


def recover(context: RecoveryContext) -> RecoveryResult:
    """Run ``context.method``. Raises UnknownEntry, RecoveryImpossible, RecoveryDiverged."""
    load_all()
    return recoveries[context.method].recover(context)


def load_all() -> Registry[Recovery]:
    """The registry with every method of this package in it."""
    discover(compression.recovery.__name__, compression.recovery.__path__)
    return recoveries


def describe() -> list[dict[str, Any]]:
    """Name, title, summary and options schema of each recovery, for the catalogue."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "summary": entry.summary,
            "options": entry.options.model_json_schema(),
        }
        for entry in load_all()
    ]
