"""Options and recipes of neurons, heads, experts and hidden channels, of one width in all layers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from compression.allocation.structures import structure_allocations
from compression.anatomy.families import FAMILIES
from compression.anatomy.structures import GRANULARITIES
from compression.criteria.structures import structure_criteria
from compression.recipes.base import Paper, Recipe, RecipeOptions, options_model, parameter_fields
from compression.recipes.weights import data_needs, gradient_fields
from compression.updates.structures import structure_updates

TARGETS = ("sparsity", "parameters", "macs", "bytes", "latency")
EXPERT_TARGETS = ("sparsity", "parameters", "macs", "bytes")


def structure_options(name: str, **defaults: Any) -> type[RecipeOptions]:
    """The options of a recipe of structures with its own defaults. ValueError for a default that is no
    option."""
    return options_model(name, _fields(), "structures", defaults)


@lru_cache(maxsize=1)
def _fields() -> dict[str, tuple[Any, Any]]:
    fields: dict[str, tuple[Any, Any]] = {**_axes(), **_multiples(), **gradient_fields(), **_sets()}
    return fields | parameter_fields(structure_criteria, structure_updates, structure_allocations)


def _axes() -> dict[str, tuple[Any, Any]]:
    return {
        "criterion": (
            Literal[tuple(structure_criteria.names())],
            Field("magnitude", description="What a neuron, a head, an expert or a hidden channel is worth."),
        ),
        "allocation": (
            Literal[tuple(structure_allocations.names())],
            Field(
                "uniform",
                description="How many units each layer keeps. All but uniform give layers widths of their "
                "own, for which output.layout says how they are written.",
            ),
        ),
        "remove_parts": (
            Literal["no", "also", "only"],
            Field(
                "no",
                description="Whether layers of widths of their own may lose a whole attention or "
                "feed-forward, or lose nothing else (where the weight that reads its units has no bias, and "
                "not the first layer's attention).",
            ),
        ),
        "update": (
            list[Literal[tuple(structure_updates.names())]],  # type: ignore[misc]
            Field(
                [],
                max_length=4,
                description="What happens to the weights that read the rest, in order; empty: nothing.",
            ),
        ),
        "rotation": (
            Literal["none", "shared", "per-layer"],
            Field(
                "none",
                description="Into which basis the residual stream is turned before hidden channels go: none, "
                "its principal directions over all layers (shared), or those of each norm of each layer "
                "(per-layer), with weights on the skip connections that only packaged code holds. The "
                "criterion activation-energy orders them. A head that is tied to the embeddings is untied.",
            ),
        ),
        "sequential": (
            bool,
            Field(False, description="Later blocks are calibrated on what the cut earlier blocks give."),
        ),
    }


def _multiples() -> dict[str, tuple[Any, Any]]:
    channels = (
        "Hidden channels that stay are a multiple of it, or all; by default 64 on the queue gpu where there "
        "are at least 256, and 1 where there are below 32."
    )
    text = (
        "Neurons that stay in a layer are a multiple of it, or all; by default 64 on the queue gpu "
        "where there are at least 256, and 1 where there are below 32."
    )
    return {
        "neuron_multiple": (int, Field(8, ge=1, le=4096, description=text)),
        "head_multiple": (
            int,
            Field(1, ge=1, le=1024, description="Heads (with their group) that stay are a multiple of it."),
        ),
        "expert_multiple": (
            int,
            Field(1, ge=1, le=1024, description="Experts that stay in a layer are a multiple of it."),
        ),
        "hidden_multiple": (int, Field(8, ge=1, le=4096, description=channels)),
    }


def _sets() -> dict[str, tuple[Any, Any]]:
    return {
        "calibration_sets": (
            int,
            Field(
                1,
                ge=1,
                le=64,
                description="Into so many sets the calibration sequences are split; neurons and heads are "
                "chosen by that whose choice turns the predictions least. 1: by all of them.",
            ),
        ),
        "calibration_set_sequences": (
            int,
            Field(
                8,
                ge=1,
                le=65536,
                description="Calibration sequences, of all, that the sets are judged by.",
            ),
        ),
    }


def structure_recipe(
    name: str,
    title: str,
    summary: str,
    paper: Paper | None,
    *,
    granularities: tuple[str, ...] = ("neuron+head", "neuron", "head"),
    **defaults: Any,
) -> Recipe:
    """A recipe of structures: its needs and axes follow from the entries that its options choose."""
    options = structure_options("".join(part.title() for part in name.split("-")), **defaults)
    chosen: Any = options()
    needs = [
        *structure_criteria[chosen.criterion].needs,
        *(need for update in chosen.update for need in structure_updates[update].needs),
        *structure_allocations[chosen.allocation].needs,
    ]
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        needs=frozenset(data_needs(needs)),
        families=tuple(
            family.name
            for family in FAMILIES
            if not (family.keeps_equal and chosen.allocation != "uniform")
            and any(all(map(family.offers, GRANULARITIES[one])) for one in granularities)
        ),
        granularities=granularities,
        targets=EXPERT_TARGETS if granularities == ("expert",) else TARGETS,
        options=options,
        axes={
            "criterion": chosen.criterion,
            "allocation": chosen.allocation,
            "update": " + ".join(chosen.update) or "none",
            "schedule": "one-shot",
        },
    )
