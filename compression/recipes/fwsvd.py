"""FWSVD: weights become products of two, cut where the columns that the loss is sensitive to lose least.

The paper compresses models that were trained for a task and trains them on; here the recovery `lora` or
`distillation` does. Gradients are those of the dense model.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.ranks import rank_recipe

FWSVD = recipes.register(
    rank_recipe(
        "fwsvd",
        "FWSVD",
        "Replaces weights by products of two thin ones, columns counting by their Fisher information. Needs "
        'output.layout "packaged".',
        Paper(
            "Language model compression with weighted low-rank factorization",
            "Hsu, Hua, Chang, Lou, Shen, Jin",
            "ICLR 2022",
            "2207.00112",
        ),
        criterion="fisher-inputs",
    )
)
