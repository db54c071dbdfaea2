"""D-Pruner."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

D_PRUNER = recipes.register(
    weight_recipe(
        "d-pruner",
        "D-Pruner",
        "Keeps what a domain needs without losing the general: needs general text (calibration.dataset) and "
        "text of the domain (calibration.domain.dataset); the report has the quality on both apart.",
        Paper(
            "Pruning as a Domain-specific LLM Extractor",
            "Zhang, Liu, Zhao, Cheng, Bao, Zhang, Mitra, Chen",
            "NAACL Findings 2024",
            "2405.06275",
        ),
        criterion="d-pruner",
        comparison="layer",
    )
)
