"""K-prune: what the predictions lose, compared over the whole encoder, then least squares layer after layer.

The paper adds to the predictive knowledge (here the Fisher information of masks) what each sub-layer's output
loses, and prunes sub-layer by sub-layer, measuring anew each time; here masks are measured once, and only the
least squares see the layers before as they are by then.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

K_PRUNE = recipes.register(
    structure_recipe(
        "k-prune",
        "K-prune, measured once",
        "Neurons and heads whose masks the loss reacts to least go, wherever they are; then least squares, "
        "layer after layer. Needs output.layout.",
        Paper(
            "Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models",
            "Park, Choi, Kang",
            "ICLR 2024",
            "2308.03449",
        ),
        criterion="fisher",
        update=("least-squares",),
        allocation="global",
        sequential=True,
    )
)
