"""DSnoT."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

DSNOT = recipes.register(
    weight_recipe(
        "dsnot",
        "DSnoT",
        "Repairs a Wanda mask without training: weights are regrown and others removed in their place.",
        Paper(
            "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
            "Zhang, Zhao, Lin, Sun, Yao, Han, Tanner, Liu, Ji",
            "ICLR 2024",
            "2310.08915",
        ),
        granularities=("unstructured", "n:m"),
        criterion="wanda",
        comparison="row",
        update=("dsnot",),
    )
)
