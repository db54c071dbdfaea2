"""Options and recipes of single weights: every axis can be overridden, every entry's parameters are
options."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from compression.allocation import allocations
from compression.anatomy.families import DECODERS, ENCODERS
from compression.anatomy.graph import FAMILY
from compression.criteria import criteria
from compression.recipes.base import Paper, Recipe, RecipeOptions, options_model, parameter_fields
from compression.updates import updates

# What a need of an entry means for the data of a job; what is not named needs none.
_DATA = {
    "activations": {"calibration"},
    "means": {"calibration"},
    "variances": {"calibration"},
    "magnitudes": {"calibration"},
    "lengths": {"calibration"},
    "energies": {"calibration"},
    "routing": {"calibration"},
    "expert.norms": {"calibration"},
    "expert.products": {"calibration"},
    "hessian": {"calibration"},
    "influence": {"calibration"},
    "divergence": {"calibration"},
    "loss": {"calibration", "loss"},
    "slope": {"calibration", "loss"},
    "gradient.mean": {"calibration", "gradients", "loss"},
    "gradient.output": {"calibration", "gradients", "loss"},
    "gradient.absolute": {"calibration", "gradients", "loss"},
    "gradient.square": {"calibration", "gradients", "loss"},
    "unit.influence": {"calibration"},
    "unit.divergence": {"calibration"},
    "unit.loss": {"calibration", "loss"},
    "mask.square": {"calibration", "gradients", "loss"},
    "domain.gradient.mean": {"calibration", "domain", "gradients", "loss"},
    "domain.gradient.square": {"calibration", "domain", "gradients", "loss"},
}

_OF_GRAPHS = {"activations", "means", "magnitudes", "hessian", "scores", "weights"}
"""Needs that are met by graphs: what enters a matrix, and its values; no layers, hidden states or losses."""


def works_on_graphs(needs: Iterable[str]) -> bool:
    """Whether what an entry needs can be known of a graph."""
    return _OF_GRAPHS.issuperset(needs)


def data_needs(needs: Iterable[str]) -> set[str]:
    """What entries with these needs ask of a job: "calibration" data, that of a "domain" too, a model with a
    "loss", "gradients" of it."""
    return set[str]().union(*(_DATA.get(need, set()) for need in needs))


def weight_options(name: str, **defaults: Any) -> type[RecipeOptions]:
    """The options of a recipe of single weights with its own defaults.

    Keys are the axes (criterion, allocation, update, comparison), the bounds, how calibration is done, and
    the parameters of all entries. ValueError for a default that is no option.
    """
    return options_model(name, _fields(), "single weights", defaults)


@lru_cache(maxsize=1)
def _fields() -> dict[str, tuple[Any, Any]]:
    fields: dict[str, tuple[Any, Any]] = {**_axes(), **_bounds(), **_calibration(), **gradient_fields()}
    return fields | parameter_fields(criteria, allocations, updates)


def _axes() -> dict[str, tuple[Any, Any]]:
    return {
        "criterion": (_names(criteria), Field("magnitude", description="What a weight is worth.")),
        "allocation": (
            _names(allocations),
            Field("uniform", description="How the sparsity spreads over the model. n:m is always uniform."),
        ),
        "update": (
            list[_names(updates)],  # type: ignore[misc]
            Field(
                [], max_length=8, description="What happens to the rest, one after another; empty: nothing."
            ),
        ),
        "comparison": (
            Literal["row", "layer"],
            Field(
                "layer",
                description="Weights compete within each output row, or within the whole weight. n:m ignores "
                "it.",
            ),
        ),
    }


def _bounds() -> dict[str, tuple[Any, Any]]:
    return {
        "minimum_density": (
            float,
            Field(
                0.05,
                ge=0.0,
                le=1.0,
                description="Fraction of every weight that stays at least. n:m has its own density.",
            ),
        ),
        "maximum_density": (
            float,
            Field(
                1.0,
                ge=0.0,
                le=1.0,
                description="Fraction of every weight that stays at most. n:m has its own density.",
            ),
        ),
    }


def _calibration() -> dict[str, tuple[Any, Any]]:
    return {
        "sequential": (
            bool,
            Field(True, description="Later blocks are calibrated on what the pruned earlier blocks give."),
        ),
        "token_weight": (
            Literal["none", "attention", "norm"],
            Field(
                "none",
                description="How much each calibration token counts: all the same, by the attention it "
                "receives (RSQ), or by the norm of its hidden state.",
            ),
        ),
    }


def gradient_fields() -> dict[str, tuple[Any, Any]]:
    """The options that say how gradients are found, of all recipes that may need any."""
    return {
        "gradient": (
            Literal["exact", "zeroth-order"],
            Field(
                "exact",
                description="How gradients are found, where any are needed: backwards block by block, or "
                "from forward passes alone.",
            ),
        ),
        "gradient_sequences": (
            int,
            Field(
                64,
                ge=1,
                le=65536,
                description="Calibration sequences that gradients are taken over, of each dataset.",
            ),
        ),
        "gradient_directions": (
            int,
            Field(
                32, ge=1, le=4096, description="Random directions of zeroth-order gradients, two passes each."
            ),
        ),
    }


def _names(registry: Any) -> Any:
    return Literal[tuple(registry.names())]


def weight_recipe(
    name: str,
    title: str,
    summary: str,
    paper: Paper | None,
    *,
    granularities: tuple[str, ...] = ("unstructured", "n:m", "block"),
    **defaults: Any,
) -> Recipe:
    """A recipe of single weights: its needs and axes follow from the entries that its options choose."""
    options = weight_options("".join(part.title() for part in name.split("-")), **defaults)
    chosen: Any = options()
    needs = [
        *criteria[chosen.criterion].needs,
        *allocations[chosen.allocation].needs,
        *(need for update in chosen.update for need in updates[update].needs),
    ]
    weighted = chosen.token_weight != "none"  # noqa: S105
    graphs = (FAMILY,) if works_on_graphs(needs) and not weighted else ()
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        needs=frozenset(data_needs(needs) | ({"calibration"} if weighted else set())),
        families=(*DECODERS, *ENCODERS, *graphs),
        granularities=granularities,
        targets=("sparsity",),
        options=options,
        axes={
            "criterion": chosen.criterion,
            "allocation": chosen.allocation,
            "update": " + ".join(chosen.update) or "none",
            "schedule": "one-shot",
        },
    )
