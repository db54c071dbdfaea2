"""FinerCut: whole attentions and feed-forwards go, one by one.

The paper removes parts until so many are gone; here until the target is met. It compares what the model
predicts by the Jensen-Shannon divergence among others, here by the Kullback-Leibler divergence.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

FINERCUT = recipes.register(
    structure_recipe(
        "finercut",
        "FinerCut",
        "Removes whole attentions and feed-forwards one by one, each time the one that the predictions miss "
        "least. For deep models: on one of six layers random units did no worse at 50%. Needs output.layout.",
        Paper(
            "FinerCut: Finer-grained Interpretable Layer Pruning for Large Language Models",
            "Zhang, Li, Wang, Shen, and others",
            "2024",
            "2405.18218",
        ),
        granularities=("neuron+head",),
        criterion="magnitude",
        allocation="greedy",
        remove_parts="only",
    )
)
