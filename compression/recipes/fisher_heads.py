"""Fisher information of masks over neurons and heads, with the same width in all layers.

The paper searches masks under a budget of MACs or latency, rearranges them within a layer by blocks of the
Fisher information and tunes what is left of them by least squares on each layer's output. Here every layer
keeps its best units by the diagonal, and least squares give the weights that read them new values.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

FISHER_HEADS = recipes.register(
    structure_recipe(
        "fisher-heads",
        "Fisher masks",
        "Removes the neurons and heads whose masks the loss reacts to least; then least squares.",
        Paper(
            "A Fast Post-Training Pruning Framework for Transformers",
            "Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami",
            "NeurIPS 2022",
            "2204.09656",
        ),
        criterion="fisher",
        update=("least-squares",),
    )
)
