"""Channels by what their readers lose, and readers fitted to the dense graph."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

OBSPA = recipes.register(
    channel_recipe(
        "obspa",
        "OBSPA",
        "Removes channels of a graph that their readers miss least and fits the readers to the dense graph. "
        "Needs images, no labels, no training.",
        Paper(
            "Structurally Prune Anything: Any Architecture, Any Framework, Any Time",
            "Wang, Rachwan, Guennemann, Charpentier",
            "arXiv 2024",
            "2403.18955",
        ),
        criterion="obs",
        update="least-squares",
    )
)
