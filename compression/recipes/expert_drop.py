"""Expert pruning as in "Not all experts are equal"; the paper also skips experts while the model runs, which
no stock config can say, so that is left out."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

EXPERT_DROP = recipes.register(
    structure_recipe(
        "expert-drop",
        "Expert pruning",
        "Keeps of every layer the experts that together give its output best; all sets are tried if few.",
        Paper(
            "Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large "
            "Language Models",
            "Lu, Liu, Xu, Zhou, Huang, Zhang, Yan, Li",
            "ACL 2024",
            "2402.14800",
        ),
        granularities=("expert",),
        criterion="expert-subset",
    )
)
