"""Refuses what cannot work on the single weights of a graph, and fills in what is left open. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.anatomy.graph_sites import GraphSite
from compression.anatomy.patterns import ignored
from compression.resolving.draft import Draft
from compression.resolving.target import check_target
from compression.specification import granularity_kind, n_m

_AXES = (("criterion", "criteria"), ("allocation", "allocations"), ("update", "updates"))


def single_weights(draft: Draft) -> bool:
    """Whether a job on a graph asks for single weights: whatever its recipe removes but channels."""
    return CHANNEL not in draft.recipe.granularities


def resolve_structure(draft: Draft) -> None:
    """Fills in the granularity and checks what is to be left alone."""
    recipe, structure = draft.recipe, draft.specification.structure
    given = structure.granularity or recipe.granularities[0]
    kind = granularity_kind(given)
    if kind not in recipe.granularities:
        draft.refuse(
            "/structure/granularity",
            f"{recipe.name} does not remove by {given!r}; it offers {', '.join(recipe.granularities)}.",
            "granularity_unsupported",
        )
        return
    if kind not in draft.inspection.granularities:
        draft.refuse(
            "/structure/granularity",
            f"No matrix of weights is known of this graph, so {given!r} is impossible. Graphs have them in "
            "convolutions and in products with a stored matrix; a model that was uploaded before they were "
            "looked for must be uploaded again.",
            "granularity_unsupported",
        )
        return
    draft.update("structure", granularity=given)
    _check_patterns(draft)


def _check_patterns(draft: Draft) -> None:
    names = [site.name for site in draft.inspection.sites]
    patterns = draft.specification.structure.ignore
    for index, pattern in enumerate(patterns):
        if not ignored([pattern], names):
            draft.refuse(
                f"/structure/ignore/{index}",
                f"{pattern!r} names no matrix of weights of this graph; names look like {names[0]!r}.",
                "pattern_matches_nothing",
            )
    if patterns and len(ignored(patterns, names)) == len(names):
        draft.refuse("/structure/ignore", "These patterns leave no weight to prune.", "pattern_matches_all")


def reads_data(draft: Draft) -> bool:
    """Whether criterion, allocation or updates look at data. Notes a fault for each that no graph can
    answer."""
    chosen = draft.specification.options
    needed = False
    for option, axis in _AXES:
        entries = {str(entry["name"]): entry for entry in draft.catalogue.data[axis]}
        given: Any = chosen[option]
        for name in [given] if isinstance(given, str) else given:
            needed = needed or bool(entries[name]["needs"])
            if not entries[name]["graphs"]:
                possible = ", ".join(known for known, entry in entries.items() if entry["graphs"])
                draft.refuse(
                    f"/options/{option}",
                    f"{name!r} looks at layers or gradients, which are not measured of graphs; possible: "
                    f"{possible}.",
                    "option_conflict",
                )
    _check_rest(draft)
    return needed


def _check_rest(draft: Draft) -> None:
    chosen = draft.specification.options
    if chosen["token_weight"] != "none":  # noqa: S105
        draft.refuse(
            "/options/token_weight",
            "A graph says nothing of tokens: write 'none' or leave it out.",
            "option_conflict",
        )
    if n_m(draft.specification.structure.granularity) and chosen["allocation"] != "uniform":
        draft.refuse(
            "/options/allocation",
            f"n:m removes the same share everywhere, so {chosen['allocation']!r} is impossible: write "
            "'uniform' or leave it out, or use the granularity 'unstructured'.",
            "option_conflict",
        )


def check_weights(draft: Draft) -> None:
    """Notes a fault if the target cannot be met by the matrices that the granularity fits."""
    granularity = draft.specification.structure.granularity
    sites = [site for site in draft.inspection.sites if isinstance(site, GraphSite)]
    fit = tuple(site for site in sites if site.fits(granularity))
    left = ignored(draft.specification.structure.ignore, (site.name for site in fit))
    if len(left) == len(fit):
        shapes = ", ".join(
            f"{site.name} ({site.rows} outputs, {site.channels} channels)" for site in sites[:3]
        )
        draft.refuse(
            "/structure/granularity",
            f"{granularity} fits no matrix of this graph that may be pruned: it must divide the channels "
            "that an output reads at one place of a kernel, and the rows of blocks the outputs of a group. "
            f"There are {shapes}{' and others' if len(sites) > 3 else ''}.",
            "granularity_unsupported",
        )
        return
    part = Draft(
        draft.specification,
        draft.recipe,
        draft.catalogue,
        replace(draft.inspection, sites=fit),
        draft.datasets,
        draft.timings,
    )
    check_target(part)
    draft.faults += part.faults
