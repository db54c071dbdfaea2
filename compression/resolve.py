"""Fills every default of a specification and refuses what cannot work, before a job is queued. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compression import options
from compression.anatomy.budget import default_length
from compression.anatomy.graph import is_graph
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import Timing
from compression.catalogue import Catalogue, Offer
from compression.errors import Fault, SpecificationInvalid
from compression.loading.dataset_files import DatasetFacts
from compression.resolving.data import check_gates, resolve_evaluation, resolve_recovery
from compression.resolving.domain import resolve_domain_calibration, resolve_domain_evaluation
from compression.resolving.draft import Draft
from compression.resolving.graphs import resolve_graph
from compression.resolving.hidden import why_not
from compression.resolving.images import resolve_preprocessing
from compression.resolving.layout import check_layout
from compression.resolving.output import resolve_output
from compression.resolving.structures import check_kinds
from compression.resolving.target import check_target
from compression.specification import JobSpecification, granularity_kind, n_m
from compression.suggestions import closest


def resolve(
    spec: JobSpecification,
    catalogue: Catalogue,
    inspection: Inspection,
    datasets: Mapping[str, DatasetFacts],
    timings: Sequence[Timing] = (),
) -> JobSpecification:
    """The specification with nothing left open, for this model and these datasets (by id). `timings` are what
    is known of the model's latency, newest first; they refuse what none of them reaches, and change nothing.

    Resolving a resolved specification changes nothing. Raises SpecificationInvalid with every fault found.
    """
    recipe = _recipe(spec, catalogue)
    draft = Draft(spec, recipe, catalogue, inspection, datasets, timings)
    _check_family(draft)
    if is_graph(inspection):
        if not draft.faults:
            resolve_graph(draft)
        if draft.faults:
            raise SpecificationInvalid(draft.faults)
        return draft.specification
    granularity = _granularity(draft)
    draft.update("structure", granularity=granularity)
    _check_ignore(draft)
    _resolve_options(draft)
    _resolve_calibration(draft)
    resolve_evaluation(draft)
    resolve_domain_evaluation(draft)
    check_gates(draft)
    resolve_recovery(draft)
    resolve_preprocessing(draft)
    resolve_output(draft)
    check_layout(draft)
    if not draft.faults:
        check_target(draft)
    if draft.faults:
        raise SpecificationInvalid(draft.faults)
    return draft.specification


def _recipe(spec: JobSpecification, catalogue: Catalogue) -> Offer:
    recipes = catalogue.recipes
    if spec.recipe not in recipes:
        message = f"There is no recipe {spec.recipe[:80]!r}: {closest(spec.recipe, recipes)}."
        raise SpecificationInvalid([Fault("/recipe", message, "recipe_unknown")])
    return recipes[spec.recipe]


def _check_family(draft: Draft) -> None:
    recipe, inspection = draft.recipe, draft.inspection
    if inspection.family not in recipe.families:
        blind = is_graph(inspection) and inspection.task == "other"  # no data are read for it
        others = [
            name
            for name, offer in draft.catalogue.recipes.items()
            if inspection.family in offer.families and not (blind and offer.needs)
        ]
        why = "" if is_graph(inspection) else why_not(draft, recipe.granularities[0])
        draft.refuse(
            "/recipe",
            f"{recipe.name} does not work on the family {inspection.family!r} (it does on "
            f"{', '.join(recipe.families)}){why}; recipes for this "
            f"model: {', '.join(others) or 'none'}.",
            "family_unsupported",
        )


def _granularity(draft: Draft) -> str:
    recipe = draft.recipe
    possible = draft.inspection.granularities
    first = next((name for name in recipe.granularities if name in possible), recipe.granularities[0])
    # Of a mixture, experts are the most there is to remove.
    first = "expert" if "expert" in possible and "expert" in recipe.granularities else first
    given = draft.specification.structure.granularity or first
    kind = granularity_kind(given)
    if kind not in recipe.granularities:
        able = [name for name, offer in draft.catalogue.recipes.items() if kind in offer.granularities]
        hint = f"recipes that do: {', '.join(able)}" if able else "no recipe does yet"
        draft.refuse(
            "/structure/granularity",
            f"{recipe.name} does not remove by {given!r}; it offers {', '.join(recipe.granularities)} "
            f"({hint}).",
            "granularity_unsupported",
        )
        return recipe.granularities[0]
    # Whether the shape of blocks fits is checked with the target.
    # Of a single layer the target says what is wrong.
    if kind not in possible and not (kind == "layer" and draft.inspection.layers == 1):
        draft.refuse(
            "/structure/granularity",
            f"This model cannot be cut by {given!r}{why_not(draft, given)}; possible: {', '.join(possible)}.",
            "granularity_unsupported",
        )
    return given


def _check_ignore(draft: Draft) -> None:
    from compression.anatomy.patterns import ignored

    patterns = draft.specification.structure.ignore
    names = [site.name for site in draft.inspection.sites]
    never_pruned = [item["name"] for item in draft.inspection.not_prunable]
    if patterns and draft.layers:
        draft.refuse(
            "/structure/ignore",
            "With whole layers there is nothing to ignore: use options.keep_first and options.keep_last.",
            "pattern_unsupported",
        )
        return
    if patterns and draft.structures:
        draft.refuse(
            "/structure/ignore",
            "Every layer loses as many units, so no weight can be left alone: leave it out.",
            "pattern_unsupported",
        )
        return
    if patterns and draft.vocabulary:
        draft.refuse(
            "/structure/ignore",
            "Every tensor with rows of the vocabulary loses the same ones, no other loses any: leave it out.",
            "pattern_unsupported",
        )
        return
    for index, pattern in enumerate(patterns):
        if not ignored([pattern], [*names, *never_pruned]):
            example = f"{names[0]!r} or {'*.' + names[0].rsplit('.', 2)[-2]!r}"
            draft.refuse(
                f"/structure/ignore/{index}",
                f"{pattern!r} names no weight of this model; names look like {example}.",
                "pattern_matches_nothing",
            )
    if patterns and len(ignored(patterns, names)) == len(names):
        draft.refuse("/structure/ignore", "These patterns leave no weight to prune.", "pattern_matches_all")


def _resolve_options(draft: Draft) -> None:
    schema, given = draft.recipe.options, draft.specification.options
    draft.faults += options.check_options(given, schema, draft.recipe.name, ["options"])
    filled = options.with_defaults(given, schema)
    if n_m(draft.specification.structure.granularity) and filled.get("allocation", "uniform") != "uniform":
        draft.refuse(
            "/options/allocation",
            f"n:m removes the same share everywhere, so {filled['allocation']!r} is impossible: write "
            "'uniform' or "
            "leave it out, or use the granularity 'unstructured'.",
            "option_conflict",
        )
    if draft.inspection.window_macs and filled.get("token_weight", "none") != "none":
        draft.refuse(
            "/options/token_weight",
            "This model attends within windows that change from layer to layer, so tokens have no weights of "
            "their own: write 'none' or leave it out.",
            "option_conflict",
        )
    draft.replace(options=filled)
    if draft.structures:
        check_kinds(draft)


def _resolve_calibration(draft: Draft) -> None:
    calibration, recipe = draft.specification.calibration, draft.recipe
    needs = chosen_needs(draft)
    if "loss" in needs and draft.inspection.task == "feature-extraction":
        draft.refuse(
            "/options",
            f"{recipe.name} with these options needs a loss, and a model without a head has "
            "none: choose a criterion and an allocation without one, such as wanda and owl.",
            "option_conflict",
        )
    if calibration is None:
        if needs:
            seen = "how often tokens occur" if draft.vocabulary else "activations"
            what, part = f"{seen}, so it needs {draft.data_kind}", '{"dataset": "dst_..."}'
            if "domain" in needs:
                what = "general text and at text of a domain, so it needs both"
                part = '{"dataset": "dst_...", "domain": {"dataset": "dst_..."}}'
            draft.refuse(
                "/calibration",
                f'{recipe.name} looks at {what}: add "calibration": {part}.',
                "calibration_missing",
            )
        return
    draft.dataset("/calibration/dataset", calibration.dataset)
    if draft.inspection.image is not None:
        draft.no_length("/calibration/sequence_length", calibration.sequence_length)
    else:
        length = calibration.sequence_length or default_length(draft.inspection)
        draft.length("/calibration/sequence_length", length)
        draft.update("calibration", sequence_length=length)
    resolve_domain_calibration(draft, needed="domain" in needs)


def chosen_needs(draft: Draft) -> set[str]:
    """What the recipe with the job's options asks of the data: "calibration", "domain", "loss",
    "gradients"."""
    chosen = draft.specification.options
    if "criterion" not in chosen:
        return set(draft.recipe.needs)
    axes = {
        "criteria": [chosen["criterion"]],
        "allocations": [chosen.get("allocation", "uniform")],
        "updates": chosen.get("update", []),
    }
    if draft.structures:
        axes = {
            "structure_criteria": [chosen["criterion"]],
            "structure_updates": chosen.get("update", []),
            "structure_allocations": [chosen.get("allocation", "uniform")],
        }
    if draft.layers:
        axes = {"layer_criteria": [chosen["criterion"]], "layer_updates": [chosen["update"]]}
    if draft.ranks:
        axes = {
            "rank_criteria": [chosen["criterion"]],
            "rank_updates": chosen.get("update", []),
            "rank_allocations": [chosen.get("allocation", "uniform")],
        }
    if is_graph(draft.inspection):
        axes = {"graph_criteria": [chosen["criterion"]], "graph_updates": [chosen["update"]]}
        axes["graph_schedules"] = [chosen["schedule"]]
    if draft.vocabulary:
        axes = {"vocabulary_criteria": [chosen["criterion"]]}
    used = chosen.get("token_weight", "none") != "none" or chosen.get("calibration_sets", 1) > 1
    found = {"calibration"} if used else set[str]()
    for axis, names in axes.items():
        for entry in draft.catalogue.data[axis]:
            if entry["name"] in names:
                found |= set(entry["needs"])
    return found
