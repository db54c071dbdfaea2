"""Whether a target of latency can be met, as far as that is known before the job measures. No torch."""

from __future__ import annotations

from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.latency import Timing
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.timed import fastest, target_budget, target_layers, target_widths
from compression.resolving.draft import Draft
from compression.resolving.layout import is_varied

_POINTER = "/target/latency"


def check_latency(draft: Draft) -> None:
    """Notes a fault if the target cannot be met: by its nature, or on any device that has a table of times of
    this shape. Without a table the job finds out when it has measured one. Of whole layers also fills
    `keep_first` and `keep_last`."""
    specification = draft.specification
    if draft.layers:
        _keep_ends(draft)
    if specification.structure.granularity == "expert":
        draft.refuse(
            _POINTER,
            "A token takes as many experts as before, so fewer experts are hardly faster: aim at sparsity, "
            "parameters or bytes.",
            "target_unsupported",
        )
    if HIDDEN in GRANULARITIES.get(specification.structure.granularity or "", ()):
        draft.refuse(
            _POINTER,
            "Times are measured of layers with fewer neurons and heads, not with fewer hidden channels: aim "
            "at sparsity, parameters, macs or bytes, or remove neurons and heads alone.",
            "target_unsupported",
        )
    if "latency" not in specification.evaluation.measure:
        draft.refuse(
            "/evaluation/measure",
            'Whether a latency was reached is measured at the end: add "latency", or leave it out.',
            "option_conflict",
        )
    if specification.options.get("remove_parts", "no") != "no":
        draft.refuse(
            "/options/remove_parts",
            "Times are measured of layers that have both their parts: write 'no', or aim at parameters, "
            "macs or bytes.",
            "option_conflict",
        )
    if draft.inspection.cross_layers or draft.inspection.window_macs:
        draft.refuse(
            _POINTER,
            "This model has several lists of layers, whose times are not measured apart: aim at sparsity, "
            "parameters, macs or bytes.",
            "target_unsupported",
        )
    if not draft.faults and draft.timings and not any(_reaches(draft, timing) for timing in draft.timings):
        _refuse(draft, draft.timings[0])


def _keep_ends(draft: Draft) -> None:
    """One layer each is kept, where there are three."""
    schema = draft.recipe.options.get("properties", {})
    ends = 1 if draft.inspection.layers > 2 else 0
    filled = {
        key: ends for key in ("keep_first", "keep_last") if key in schema and key not in draft.given_options
    }
    draft.replace(options={**draft.specification.options, **filled})


def _fewest_layers(draft: Draft) -> int:
    options = draft.specification.options
    return max(1, int(options.get("keep_first", 0)) + int(options.get("keep_last", 0)))


def _reaches(draft: Draft, timing: Timing) -> bool:
    specification, inspection = draft.specification, draft.inspection
    if draft.layers:
        removed = target_layers(specification, inspection, timing)
        return removed is not None and removed <= inspection.layers - _fewest_layers(draft)
    if is_varied(draft):
        return target_budget(specification, inspection, timing).reachable
    return target_widths(specification, inspection, timing) is not None


def _refuse(draft: Draft, timing: Timing) -> None:
    inspection, table = draft.inspection, timing.result
    dense = timing.dense_seconds(inspection)
    least = fastest(draft.specification, inspection, timing, _fewest_layers(draft))
    draft.refuse(
        _POINTER,
        f"By the times measured on {table.device} ({table.threads} threads, {table.tokens} tokens), the "
        f"dense model takes {1000 * dense:.4g} ms and the smallest result {1000 * least:.4g} ms, and a "
        f"target of {draft.specification.target.value} asks for "
        f"{1000 * timing.goal(draft.specification, inspection):.4g} ms. Reachable: ratios from "
        f"{-(-least * 10_000 // dense) / 10_000:.4f} on.",
        "target_unreachable",
    )
