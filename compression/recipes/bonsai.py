"""Bonsai: random sub-models, drawn by Wanda's scores, tell by their losses what every unit is worth."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

BONSAI = recipes.register(
    structure_recipe(
        "bonsai",
        "Bonsai",
        "Removes the neurons and heads that random sub-models lose least without; forward passes alone, but "
        "many of them. Needs output.layout.",
        Paper(
            "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes",
            "Dery, Kolawole, Kagy, Smith, Neubig, Talwalkar",
            "2024",
            "2402.05406",
        ),
        criterion="wanda",
        allocation="perturbation",
    )
)
