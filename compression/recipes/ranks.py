"""Options and recipes of low-rank replacements of weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from compression.allocation.ranks import rank_allocations
from compression.anatomy.ranks import ATOMS, RANK, SPARSE_TARGETS, TARGETS
from compression.criteria.ranks import rank_criteria
from compression.recipes.base import Paper, Recipe, RecipeOptions, options_model, parameter_fields
from compression.recipes.weights import data_needs, gradient_fields
from compression.updates.ranks import rank_updates

# Those with classes of `anatomy.varied.PACKAGED`.
FAMILIES = ("llama", "gemma")


def rank_options(name: str, **defaults: Any) -> type[RecipeOptions]:
    """The options of a recipe of ranks with its own defaults. ValueError for a default that is no option."""
    return options_model(name, _fields(), "ranks", defaults)


@lru_cache(maxsize=1)
def _fields() -> dict[str, tuple[Any, Any]]:
    fields: dict[str, tuple[Any, Any]] = {
        "criterion": (
            Literal[tuple(rank_criteria.names())],
            Field("magnitude", description="What a direction of a weight is worth."),
        ),
        "allocation": (
            Literal[tuple(rank_allocations.names())],
            Field("uniform", description="Which rank each weight gets."),
        ),
        "update": (
            list[Literal[tuple(rank_updates.names())]],  # type: ignore[misc]
            Field([], max_length=4, description="What happens to the factors; empty: nothing."),
        ),
        "sequential": (
            bool,
            Field(True, description="Later blocks are calibrated on what the earlier factors give."),
        ),
        "rank_multiple": (
            int,
            Field(1, ge=1, le=4096, description="Ranks are multiples of it; hardware likes 8 or more."),
        ),
        ATOMS: (
            int,
            Field(
                1,
                ge=1,
                le=64,
                description="Columns of the factor `up` for each entry that its rows have. 1: all are "
                "entries. Above, `down` is a dictionary of so many times as many atoms as each output takes, "
                "and `up` is stored as entries and a mask.",
            ),
        ),
        "dictionary_rounds": (
            int,
            Field(
                8, ge=0, le=256, description="How often a dictionary and its codes are fitted to each other."
            ),
        ),
        "coding_steps": (
            int,
            Field(8, ge=1, le=1024, description="In so many steps each output picks the atoms it takes."),
        ),
    }
    return fields | gradient_fields() | parameter_fields(rank_criteria, rank_allocations, rank_updates)


def rank_recipe(name: str, title: str, summary: str, paper: Paper | None, **defaults: Any) -> Recipe:
    """A recipe of ranks: its needs and axes follow from the entries that its options choose."""
    options = rank_options("".join(part.title() for part in name.split("-")), **defaults)
    chosen: Any = options()
    needs = [
        *rank_criteria[chosen.criterion].needs,
        *rank_allocations[chosen.allocation].needs,
        *(need for update in chosen.update for need in rank_updates[update].needs),
    ]
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        needs=frozenset(data_needs(needs)),
        families=FAMILIES,
        granularities=(RANK,),
        targets=TARGETS if getattr(chosen, ATOMS) == 1 else SPARSE_TARGETS,
        options=options,
        axes={
            "criterion": chosen.criterion,
            "allocation": chosen.allocation,
            "update": " + ".join(chosen.update) or "none",
            "schedule": "one-shot",
        },
    )
