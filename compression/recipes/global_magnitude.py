"""Global magnitude."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

GLOBAL_MAGNITUDE = recipes.register(
    weight_recipe(
        "global-magnitude",
        "Global magnitude",
        "One threshold on magnitude for the whole model, with a minimum left in every weight. Needs no data.",
        Paper(
            "Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude Pruning",
            "Gupta, Camci, Keneta, Vaidyanathan, Kanodia, Foo, Wu, Lin",
            "2022",
            "2209.14624",
        ),
        granularities=("unstructured", "block"),
        criterion="magnitude",
        allocation="global",
    )
)
