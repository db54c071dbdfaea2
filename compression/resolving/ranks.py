"""Whether a target can be met by lower ranks, and how the result is written. No torch."""

from __future__ import annotations

from compression.anatomy.budget import figure
from compression.anatomy.formats import GGUF
from compression.anatomy.ranks import (
    ATOMS,
    MULTIPLE,
    SPARSE_TARGETS,
    RankBudget,
    atoms_of,
    rank_budget,
    with_ranks,
)
from compression.resolving.draft import Draft
from compression.specification import quantity


def check_rank_layout(draft: Draft) -> None:
    """Notes a fault if the result is not to be written in the one way there is."""
    output = draft.specification.output
    if output.layout != "packaged":
        given = "" if output.layout is None else ": there is nothing to pad"
        draft.refuse(
            "/output/layout",
            "A product of two weights has no stock config, and multiplied out it is as large as before"
            f'{given}. Write "packaged" (smaller and faster; transformers loads it with the code in the '
            "artifact), or choose a recipe whose results stock classes load, such as flap or layer-drop.",
            "layout_missing" if output.layout is None else "layout_unsupported",
        )
    if GGUF in output.formats:
        draft.refuse(
            "/output/formats",
            'llama.cpp has no weights that are products of two: leave "gguf" out.',
            "format_unsupported",
        )
    chosen = draft.specification.options
    if atoms_of(draft.specification) > 1:
        _check_sparse(draft)
    if set(chosen.get("update", [])) - {"none"} and chosen.get("sequential"):
        draft.refuse(
            "/options/update",
            "Directions that come of what the compressed blocks give leave the update nothing to change: "
            "write options.sequential false, or leave the update out.",
            "option_conflict",
        )


def _check_sparse(draft: Draft) -> None:
    """Notes a fault for what sparse codes do not go with."""
    chosen, target = draft.specification.options, draft.specification.target
    if target.kind not in SPARSE_TARGETS and target.kind in draft.recipe.targets:
        draft.refuse(
            f"/target/{target.kind}",
            f"Sparse codes (options.{ATOMS} above 1) save parameters; masks come on top of their bytes, and "
            "dense kernels multiply with their zeros too: aim at sparsity or parameters; the plan says the "
            "rest.",
            "target_unsupported",
        )
    if chosen.get("allocation", "uniform") != "uniform":
        draft.refuse(
            "/options/allocation",
            f"What sparse codes lose is not what the values of directions say: write 'uniform', or "
            f"options.{ATOMS} 1.",
            "option_conflict",
        )
    if set(chosen.get("update", [])) - {"none"}:
        draft.refuse(
            "/options/update",
            f"It would fill the zeros of sparse codes: leave it out, or write options.{ATOMS} 1.",
            "option_conflict",
        )


def check_ranks(draft: Draft) -> None:
    """Notes a fault if no ranks meet the target."""
    budget = rank_budget(draft.specification, draft.inspection)
    target = draft.specification.target
    if not any(budget.steps.values()):
        draft.refuse(
            f"/options/{MULTIPLE}",
            f"No multiple of {draft.specification.options[MULTIPLE]} is a rank that makes a weight of this "
            "model smaller: lower it.",
            "option_conflict",
        )
    elif not budget.reachable:
        draft.refuse(
            f"/target/{target.kind}",
            f"Lower ranks cannot meet a target of {target.value}. Reachable: {_reachable(draft, budget)}.",
            "target_unreachable",
        )


def _reachable(draft: Draft, budget: RankBudget) -> str:
    specification, inspection = draft.specification, draft.inspection
    kind, value = specification.target.kind, specification.target.value
    if kind == "sparsity":
        return f"up to {int((1 - budget.least / budget.whole) * 10_000) / 10_000}"
    smallest = {name: steps[0] for name, steps in budget.steps.items() if steps}
    least = figure(specification, with_ranks(inspection, smallest, budget.atoms), 0)
    if quantity(kind, value)[0] == "ratio":
        dense = figure(specification, inspection, 0, dense=True)
        return f"ratios from {-(-least * 10_000 // dense) / 10_000} on"
    return f"{least:,} {kind} and more"
