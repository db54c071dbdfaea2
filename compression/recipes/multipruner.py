"""MultiPruner: whole parts, then channels, then heads, in the order of the weights that lead into them."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

MULTIPRUNER = recipes.register(
    structure_recipe(
        "multipruner",
        "MultiPruner",
        "Removes whole attentions and feed-forwards, then neurons, then heads, each time what the loss rises "
        "least without; forward passes alone. Slow. Needs output.layout.",
        Paper(
            "MultiPruner: Balanced Structure Removal in Foundation Models",
            "Muñoz, Yuan, Jain",
            "2025",
            "2501.09949",
        ),
        granularities=("neuron+head",),
        criterion="input-magnitude",
        allocation="three-stage",
        remove_parts="also",
    )
)
