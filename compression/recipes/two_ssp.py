"""2SSP: neurons by the average norm of what they give, then whole attentions by the loss without them."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

TWO_SSP = recipes.register(
    structure_recipe(
        "2ssp",
        "2SSP",
        "Removes as many neurons from every layer, then whole attentions one by one by the loss without "
        "them; forward passes alone. Needs output.layout.",
        Paper(
            "2SSP: A Two-Stage Framework for Structured Pruning of LLMs",
            "Sandri, Cunegatti, Iacca",
            "TMLR 2025",
            "2501.17771",
        ),
        granularities=("neuron+head",),
        criterion="average-norm",
        allocation="two-stage",
        remove_parts="also",
    )
)
