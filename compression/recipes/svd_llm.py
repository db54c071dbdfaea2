"""SVD-LLM: weights become products of two, cut where the outputs on calibration data lose least.

The paper measures inputs on the dense model and gives all weights the same share; `update` `refit` with
`sequential` false is its first versions' closed-form update, the recovery `lora` what later ones do instead
(which train one factor after the other, here both at once). Here inputs are by default those that the
compressed earlier blocks give, for which the closed-form update changes nothing.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.ranks import rank_recipe

SVD_LLM = recipes.register(
    rank_recipe(
        "svd-llm",
        "SVD-LLM",
        "Replaces weights by products of two thin ones, so that the outputs on calibration data lose least. "
        'Needs output.layout "packaged".',
        Paper(
            "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
            "Wang, Zheng, Wan, Zhang",
            "ICLR 2025",
            "2403.07378",
        ),
        criterion="whitening",
    )
)
