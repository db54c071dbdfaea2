"""How a result is written whose layers keep different numbers of units, and whether its target can be met. No
torch."""

from __future__ import annotations

from compression.anatomy.families import family_of
from compression.anatomy.formats import GGUF
from compression.anatomy.gguf import PER_LAYER
from compression.anatomy.hidden_width import HIDDEN, turned_by_layer
from compression.anatomy.unit_budget import UnitBudget, unit_budget
from compression.anatomy.varied import PACKAGED
from compression.anatomy.widths import MULTIPLES, dense_figure
from compression.resolving.draft import Draft
from compression.resolving.hidden import check_skip_layout
from compression.resolving.ranks import check_rank_layout
from compression.specification import quantity

_PADDED = '"padded" (a stock checkpoint with zeros up to the widest layer, hardly smaller or faster)'
_PACKAGED = '"packaged" (as small and fast as it is; transformers loads it with the code in the artifact)'


def is_varied(draft: Draft) -> bool:
    """Whether layers keep different numbers of units."""
    return bool(draft.structures and draft.specification.options.get("allocation", "uniform") != "uniform")


def _equal_widths(draft: Draft) -> str | None:
    """Why units of this granularity go in equal numbers from every layer; None if they need not."""
    granularity = draft.specification.structure.granularity or ""
    if granularity == "expert":
        return "Experts go in equal numbers from every layer"
    if HIDDEN in granularity:
        return "Beside hidden channels, which all layers share, every layer keeps as many units"
    return family_of(draft.inspection.architecture).keeps_equal or None


def check_layout(draft: Draft) -> None:
    """Notes a fault if `output.layout` does not go with the allocation and the model."""
    layout = draft.specification.output.layout
    if draft.ranks:
        check_rank_layout(draft)
        return
    if not is_varied(draft):
        granularity = draft.specification.structure.granularity
        if granularity == HIDDEN and turned_by_layer(draft.specification):
            check_skip_layout(draft)
        elif layout is not None:
            draft.refuse(
                "/output/layout",
                "Leave it out: only layers with different numbers of neurons or heads need it (options."
                "allocation other than 'uniform'), low-rank weights, and a residual stream that is turned "
                "for each norm (options.rotation 'per-layer').",
                "option_conflict",
            )
        return
    packaged = draft.inspection.architecture in PACKAGED
    equal = _equal_widths(draft)
    if equal is not None:
        draft.refuse("/options/allocation", f"{equal}: write 'uniform'.", "option_conflict")
    elif layout is None:
        choices = f"{_PADDED} or {_PACKAGED}" if packaged else _PADDED
        draft.refuse(
            "/output/layout",
            f"With {draft.specification.options['allocation']!r} every layer has widths of its own, which no "
            f"stock config can say. Choose how the result is written: {choices}; or options.allocation "
            "'uniform', for a smaller stock checkpoint.",
            "layout_missing",
        )
    elif layout == "packaged":
        _check_packaged(draft, offered=packaged)
    elif draft.specification.target.kind != "sparsity":
        kind = draft.specification.target.kind
        is_hardly = "is hardly faster" if kind == "latency" else f"has hardly fewer {kind}"
        draft.refuse(
            f"/target/{kind}",
            f"Padded with zeros, the result {is_hardly}: aim at sparsity, or choose {_PACKAGED}.",
            "target_unsupported",
        )


def _check_packaged(draft: Draft, *, offered: bool) -> None:
    if not offered:
        draft.refuse(
            "/output/layout",
            f"There is no packaged code for {draft.inspection.architecture} (there is for "
            f"{', '.join(PACKAGED)}): choose {_PADDED}, or options.allocation 'uniform'.",
            "layout_unsupported",
        )
    elif GGUF in draft.specification.output.formats:
        _check_gguf(draft)


def _check_gguf(draft: Draft) -> None:
    if draft.inspection.architecture not in PER_LAYER:
        why = f"is written of {' and '.join(PER_LAYER)} alone"
    elif draft.specification.options.get("remove_parts", "no") != "no":
        why = "needs an attention and a feed-forward in every layer (options.remove_parts 'no')"
    else:
        return
    draft.refuse(
        "/output/formats",
        f'A GGUF of layers with widths of their own {why}: leave "gguf" out, or choose {_PADDED}.',
        "format_unsupported",
    )


def check_budget(draft: Draft) -> None:
    """Notes a fault if no numbers of units meet the target."""
    budget = unit_budget(draft.specification, draft.inspection)
    for kind, steps in budget.steps.items():
        if len(steps) == 1:
            option = MULTIPLES[kind]
            draft.refuse(
                f"/options/{option}",
                f"No smaller number of {kind}s is a multiple of {draft.specification.options[option]}: "
                "lower it.",
                "option_conflict",
            )
    if not draft.faults and not budget.reachable:
        target = draft.specification.target
        draft.refuse(
            f"/target/{target.kind}",
            f"Units of the granularity {draft.specification.structure.granularity!r} cannot meet a target of "
            f"{target.value}. Reachable: {_reachable(draft, budget)}.",
            "target_unreachable",
        )


def _reachable(draft: Draft, budget: UnitBudget) -> str:
    kind, value = draft.specification.target.kind, draft.specification.target.value
    if kind == "sparsity":
        return f"up to {int((1 - budget.least / budget.whole) * 10_000) / 10_000}"
    dense = dense_figure(draft.specification, draft.inspection)
    least = dense - (budget.whole - budget.least)
    if quantity(kind, value)[0] == "ratio":
        return f"ratios from {-(-least * 10_000 // dense) / 10_000} on"
    return f"{least:,} {kind} and more"
