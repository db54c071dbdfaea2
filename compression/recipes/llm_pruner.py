"""LLM-Pruner, with the same width in all layers (the paper leaves the first and last layers whole)."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

LLM_PRUNER = recipes.register(
    structure_recipe(
        "llm-pruner",
        "LLM-Pruner",
        "Removes the neurons and heads whose weights times gradients are smallest; made for LoRA afterwards.",
        Paper(
            "LLM-Pruner: On the Structural Pruning of Large Language Models",
            "Ma, Fang, Wang",
            "NeurIPS 2023",
            "2305.11627",
        ),
        criterion="taylor",
    )
)
