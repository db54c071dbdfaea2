"""Wanda."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compression.recipes import recipes
from compression.recipes.base import Paper, Recipe, WeightOptions


class WandaOptions(WeightOptions):
    """Rows compete within themselves, as in the paper, and later blocks see what earlier ones became."""

    comparison: Literal["row", "layer"] = Field(
        "row",
        description="Weights compete within each output row, or within the whole weight. n:m ignores it.",
    )
    sequential: bool = Field(
        True,
        description="Later blocks are calibrated on what the pruned earlier blocks give.",
    )


WANDA = recipes.register(
    Recipe(
        name="wanda",
        title="Wanda",
        summary="Removes the weights with the smallest product of magnitude and input norm. Fast.",
        paper=Paper(
            "A Simple and Effective Pruning Approach for Large Language Models",
            "Sun, Liu, Bair, Kolter",
            "ICLR 2024",
            "2306.11695",
        ),
        needs=frozenset({"calibration"}),
        families=("llama", "bert"),
        granularities=("unstructured", "n:m"),
        targets=("sparsity",),
        options=WandaOptions,
        axes={"criterion": "wanda", "update": "none", "schedule": "one-shot"},
    )
)
