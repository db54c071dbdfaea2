"""Vocabulary trimming: tokens that the user's texts do not use go, with their rows.

The papers trim multilingual models to a language and build a new tokenizer from what is left; here the
merges of BPE are followed, so that texts whose tokens all stay are segmented as before.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compression.anatomy.families import FAMILIES
from compression.anatomy.vocabulary import TARGETS, VOCABULARY
from compression.criteria.vocabulary import vocabulary_criteria
from compression.recipes import recipes
from compression.recipes.base import Paper, Recipe, RecipeOptions

_IMAGES = ("vit", "swin")


class VocabularyOptions(RecipeOptions):
    """Options of recipes that remove rows of the vocabulary."""

    criterion: Literal[tuple(vocabulary_criteria.names())] = Field(  # type: ignore[valid-type]
        "frequency", description="What a token is worth; the least go first, of equals the highest id."
    )
    vocabulary_multiple: int = Field(
        8, ge=1, le=4096, description="Rows that stay are a multiple of it; more rows stay if need be."
    )


VOCAB_TRIM = recipes.register(
    Recipe(
        name="vocab-trim",
        title="Vocabulary trimming",
        summary="Removes tokens that the texts do not use, with their rows; other texts become other tokens.",
        paper=Paper(
            "An Efficient Multilingual Language Model Compression through Vocabulary Trimming",
            "Ushio, Zhou, Camacho-Collados",
            "Findings of EMNLP 2023",
            "2305.15020",
        ),
        needs=frozenset({"calibration"}),
        families=tuple(family.name for family in FAMILIES if family.name not in _IMAGES),
        granularities=(VOCABULARY,),
        targets=TARGETS,
        options=VocabularyOptions,
        axes={"criterion": "frequency", "update": "none", "schedule": "one-shot"},
    )
)
