"""Options of recipes of channels that say how a graph is trained while units are prepared to go."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from compression.graphs.schedules import SCHEDULES
from compression.graphs.schedules.base import LOSSES, ONE_SHOT

_TRAINS = "Schedules that train:"


def schedule_fields() -> dict[str, tuple[Any, Any]]:
    """Type and pydantic field by name."""
    return {
        "schedule": (
            Literal[tuple(SCHEDULES.names())],
            Field(ONE_SHOT, description="Whether units go at once, or while the graph is trained."),
        ),
        "steps": (
            int,
            Field(200, ge=1, le=1_000_000, description=f"{_TRAINS} how many steps, over all rounds."),
        ),
        "batch_size": (int, Field(64, ge=2, le=4096, description=f"{_TRAINS} images in a step.")),
        "learning_rate": (
            float | None,
            Field(
                None,
                gt=0,
                description=f"{_TRAINS} the peak rate; null: 0.6 for gates (AdamW), 0.01 for the others "
                "(descent with momentum).",
            ),
        ),
        "loss": (
            Literal[LOSSES],
            Field(
                "auto",
                description=f'{_TRAINS} "labels" (cross entropy), "dense" (the distance to what the dense '
                'graph answers, without labels) or "auto": labels where all images have one.',
            ),
        ),
        "penalty": (
            float | None,
            Field(
                None,
                ge=0,
                description=f"{_TRAINS} how hard units are pressed: the largest L2 penalty of growing-reg "
                "(null: 1), the L1 penalty of mask-sparsity (0.2), the penalty of group-lasso (0.003) and of "
                "oto (0.2, times the norm a unit begins with), the weight of the costs of gates (6).",
            ),
        ),
        "rounds": (
            int,
            Field(5, ge=1, le=100, description="Of iterative; soft-masks change four times as often."),
        ),
    }
