"""STUN's first stage, whole experts; its second, single weights, is a job of its own on the result (`wanda`,
`owl`)."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

STUN = recipes.register(
    structure_recipe(
        "stun",
        "STUN, experts",
        "Keeps one expert of every cluster of experts that behave alike; single weights may go afterwards.",
        Paper(
            "STUN: Structured-Then-Unstructured Pruning for Scalable MoE Pruning",
            "Lee, Hwang, Qiao, Campos, Yao, He",
            "ACL 2025",
            "2409.06211",
        ),
        granularities=("expert",),
        criterion="router-similarity",
    )
)
