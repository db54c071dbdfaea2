"""What a job would do, as arithmetic: the answer of a plan, without running anything. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from compression.anatomy import count_macs
from compression.anatomy.budget import (
    removals,
    removed_in_all,
    selected_sites,
    stated_length,
    weight_bytes,
    without_layers,
)
from compression.anatomy.factors import factor_names, packed_names
from compression.anatomy.graph import is_graph
from compression.anatomy.graph_plan import plan_graph
from compression.anatomy.hidden_width import subject, with_skips
from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.latency import Timing
from compression.anatomy.latency_plan import NO_TABLE, UNKNOWN_CUT, predictions
from compression.anatomy.macs import used_macs
from compression.anatomy.plan_notes import plan_notes, width_notes
from compression.anatomy.ranks import (
    RANK,
    mask_bytes,
    rank_budget,
    stored,
    uniform_ranks,
    with_ranks,
)
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.timed import LATENCY, target_budget, target_layers, target_widths
from compression.anatomy.varied import varied
from compression.anatomy.vocabulary import VOCABULARY, rows_wanted, with_rows
from compression.anatomy.widths import achieved, resized
from compression.specification import JobSpecification

# Rough speeds, in multiply-accumulates a second, of what a queue usually stands for.
_SPEED = {"cpu": 2e10, "gpu": 2e13}
_LOGITS = ("text-generation", "text2text-generation")
_START = 20.0
_BATCH = 8
_EVALUATED = 512
_INTERPRETER = 512 << 20
_BASIS = (
    "Counted multiply-accumulates at {speed:.0e} a second ({queue}) plus {start:.0f} s to start: calibration "
    "runs every block twice, evaluation both models, a recovery step costs four passes. Expect a factor of "
    "three either way."
)


def plan(
    specification: JobSpecification, inspection: Inspection, timings: Sequence[Timing] = ()
) -> dict[str, Any]:
    """The plan of a resolved specification, as JSON data; `timings` are what is known of the model's latency,
    newest first.

    `parameters` and `nonzeros` count elements (the dense model is taken to have no zeros), `bytes` those of
    the weight files, `macs` those of all matrix products of one sequence, zeros included, `macs_nonzero`
    without the zeros, `memory_bytes` weights plus activations of one sequence. Ratios are pruned / dense.
    `latency` are seconds of one forward pass on each device that has a table of measured times. Where the
    target is a latency and there is no table, what will be cut is not known: `pruned` is null. For graphs see
    `graph_plan`.
    """
    if is_graph(inspection):
        return plan_graph(specification, inspection)
    timing = timings[0] if timings else None
    if specification.target.kind == LATENCY and timing is None:
        return _unmeasured(specification, inspection)
    length = stated_length(specification, inspection)
    if specification.structure.granularity == "layer":
        cut, left, removed = _layer_cut(specification, inspection, timing)
    elif specification.structure.granularity in GRANULARITIES:
        cut, left, removed = _structure_cut(specification, inspection, timing)
    elif specification.structure.granularity == VOCABULARY:
        cut, left, removed = _vocabulary_cut(specification, inspection)
    elif specification.structure.granularity == RANK:
        cut, left, removed = _rank_cut(specification, inspection)
    else:
        cut, left, removed = _weight_cut(specification, inspection)
    dense = _figures(inspection, inspection.dtype, length, {})
    pruned = _figures(left, specification.output.dtype or inspection.dtype, length, removed)
    dense["bytes"] += inspection.other_bytes
    # Of what lies beside the parameters, a stored copy of a tied head is the most where there is one.
    rows = left.vocabulary / inspection.vocabulary if inspection.vocabulary else 1
    rows *= left.hidden / inspection.hidden if inspection.hidden else 1
    other = subject(specification, inspection).other_bytes
    pruned["bytes"] += cut.pop("mask_bytes", 0) + int(other * left.layers // inspection.layers * rows)
    return {
        "valid": True,
        "dense": dense,
        "pruned": pruned,
        "ratios": {name: round(pruned[name] / dense[name], 6) for name in dense if dense[name]},
        "latency": predictions(specification, inspection, cut, timings),
        "cut": cut,
        "sequence_length": length,
        "estimate": _estimate(specification, inspection, dense["macs"], length),
        "notes": [*plan_notes(specification, inspection), *width_notes(specification, inspection, left)],
    }


def _unmeasured(specification: JobSpecification, inspection: Inspection) -> dict[str, Any]:
    """The plan of a job that finds out what to cut by measuring."""
    length = stated_length(specification, inspection)
    dense = _figures(inspection, inspection.dtype, length, {})
    dense["bytes"] += inspection.other_bytes
    cut: dict[str, Any] = {"sites": [], "weights_removed": None, "layers_removed": None}
    return {
        "valid": True,
        "dense": dense,
        "pruned": None,
        "ratios": {},
        "latency": {"reason": NO_TABLE, "predictions": []},
        "cut": cut,
        "sequence_length": length,
        "estimate": _estimate(specification, inspection, dense["macs"], length),
        "notes": [UNKNOWN_CUT, *plan_notes(specification, inspection)],
    }


Removed = Mapping[str, int]


def _weight_cut(
    specification: JobSpecification, inspection: Inspection
) -> tuple[dict[str, Any], Inspection, Removed]:
    counts = removals(specification, inspection)
    rows: list[dict[str, Any]] = []
    for site in selected_sites(specification, inspection):
        remove = counts[site.name]
        keep = None if remove is None else site.size - remove
        rows.append({"name": site.name, "shape": list(site.shape), "keep": keep, "remove": remove})
    total = removed_in_all(specification, inspection)
    known = {name: count for name, count in counts.items() if count is not None}
    # With an allocation that decides while running the places are unknown; spreading them evenly keeps the
    # totals right.
    removed = known or _spread(inspection, counts, total)
    return {"sites": rows, "weights_removed": total, "layers_removed": None}, inspection, removed


def _spread(inspection: Inspection, counts: Mapping[str, int | None], total: int) -> dict[str, int]:
    sizes = {site.name: site.size for site in inspection.sites if site.name in counts}
    whole = sum(sizes.values())
    return {name: size * total // whole for name, size in sizes.items()}


def _layer_cut(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None
) -> tuple[dict[str, Any], Inspection, Removed]:
    count = target_layers(specification, inspection, timing) or 0
    left = without_layers(inspection, count)
    total = inspection.prunable_parameters - left.prunable_parameters
    return {"sites": [], "weights_removed": total, "layers_removed": count}, left, {}


def _structure_cut(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None
) -> tuple[dict[str, Any], Inspection, Removed]:
    if specification.options.get("allocation", "uniform") != "uniform":
        return _varied_cut(specification, inspection, timing)
    widths = target_widths(specification, inspection, timing)
    assert widths is not None, "a resolved target can be met"
    left = with_skips(specification, resized(subject(specification, inspection), widths))
    shapes = {site.name: site.shape for site in left.sites}
    rows = []
    for site in inspection.sites:
        kept = shapes.get(site.name, (0, 0))
        size = kept[0] * kept[1]
        rows.append(
            {
                "name": site.name,
                "shape": list(site.shape),
                "kept_shape": list(kept),
                "keep": size,
                "remove": site.size - size,
            }
        )
    total = inspection.prunable_parameters - left.prunable_parameters
    counts = {one.kind: {"dense": one.count, "kept": widths[one.kind]}
              for one in inspection.structures if one.kind in widths}  # fmt: skip
    names = ("hidden", "heads", "key_value_heads", "head_dim", "ffn")
    shape = {name: getattr(left, name) for name in names}
    cut = {
        "sites": rows,
        "weights_removed": total,
        "layers_removed": None,
        "widths": counts,
        "shape": shape,
        "sparsity": achieved(specification, inspection, widths),
    }
    return cut, left, {}


def _varied_cut(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None
) -> tuple[dict[str, Any], Inspection, Removed]:
    """Where layers keep different numbers: what is left if they kept the same share. Only what the target
    counts is known to a step."""
    budget = target_budget(specification, inspection, timing)
    share = budget.share
    known = [one for one in inspection.structures if one.kind in budget.costs]
    left = varied(inspection, {one.kind: _spread_units(one.count * share, inspection) for one in known})
    sizes = {site.name: site.size for site in left.sites}
    removed = {site.name: site.size - sizes[site.name] for site in inspection.sites}
    cut = {
        "sites": [
            {"name": site.name, "shape": list(site.shape), "keep": None, "remove": None}
            for site in inspection.sites
        ],
        "weights_removed": sum(removed.values()),
        "layers_removed": None,
        "widths": {one.kind: {"dense": one.count, "kept": None} for one in known},
        "sparsity": 1 - share,
        "share": share,
    }
    if specification.output.layout == "packaged":
        return cut, left, {}
    return cut, inspection, removed


def _vocabulary_cut(
    specification: JobSpecification, inspection: Inspection
) -> tuple[dict[str, Any], Inspection, Removed]:
    rows = rows_wanted(specification, inspection)
    assert rows is not None, "a resolved target can be met"
    left = with_rows(inspection, rows)
    cut = {
        "sites": [],
        "weights_removed": inspection.parameters - left.parameters,
        "layers_removed": None,
        "vocabulary": {"dense": inspection.vocabulary, "kept": rows},
    }
    return cut, left, {}


def _rank_cut(
    specification: JobSpecification, inspection: Inspection
) -> tuple[dict[str, Any], Inspection, Removed]:
    """Ranks and factors; where an allocation decides while running, what is left with the same share of every
    weight."""
    budget = rank_budget(specification, inspection)
    ranks = uniform_ranks(budget)
    known = specification.options.get("allocation", "uniform") == "uniform"
    rows = []
    for site in budget.sites:
        rank, kept = ranks.get(site.name), stored(site.shape, ranks.get(site.name), budget.atoms)
        shapes = _factor_shapes(site, rank, budget.atoms)
        row = {"keep": kept, "remove": site.size - kept, "rank": rank, "factors": shapes}
        unknown = dict.fromkeys(row)
        rows.append({"name": site.name, "shape": list(site.shape), **(row if known else unknown)})
    total = budget.stored(ranks)
    cut = {
        "sites": rows,
        "weights_removed": budget.whole - total,
        "layers_removed": None,
        "sparsity": 1 - total / budget.whole,
        "mask_bytes": mask_bytes(inspection, ranks, budget.atoms),
    }
    return cut, with_ranks(inspection, ranks, budget.atoms), {}


def _factor_shapes(site: Site, rank: int | None, atoms: int) -> dict[str, list[int]]:
    """The stored tensors that stand for a weight; none where it stays."""
    if rank is None:
        return {}
    rows, columns = site.shape
    down, up = factor_names(site.name)
    if atoms == 1:
        return {down: [rank, columns], up: [rows, rank]}
    values, mask = packed_names(site.name)
    return {down: [rank, columns], values: [rows, rank // atoms], mask: [rows, -(-rank // 8)]}


def _spread_units(each: float, inspection: Inspection) -> list[int]:
    """Whole numbers, one a layer, whose sums are the nearest to `each` a layer."""
    sums = [round(each * layer) for layer in range(inspection.layers + 1)]
    return [after - before for before, after in pairwise(sums)]


def _figures(inspection: Inspection, dtype: str, length: int, removed: Removed) -> dict[str, int]:
    macs = count_macs(inspection, length)
    size = ITEM_SIZES[dtype]
    stored = weight_bytes(inspection, dtype)
    hidden, ffn, heads = inspection.hidden, inspection.ffn, inspection.heads
    outputs = length * inspection.vocabulary if inspection.task in _LOGITS else 0
    squares = 0 if inspection.window_macs else heads * length * length
    # While a decoder runs, the encoder's output is held.
    held = length * hidden if inspection.cross_layers else 0
    activations = length * (4 * hidden + 2 * ffn) + squares + outputs + held
    zeros = sum(removed.values())
    sites = {site.name: site for site in inspection.sites}
    saved = sum(used_macs(sites[name], length, count) for name, count in removed.items())
    return {
        "parameters": inspection.parameters,
        "nonzeros": inspection.parameters - zeros,
        "bytes": stored,
        "macs": macs.total,
        "macs_nonzero": macs.total - saved,
        "memory_bytes": stored + size * activations,
    }


def _estimate(
    specification: JobSpecification, inspection: Inspection, macs: int, length: int
) -> dict[str, Any]:
    speed = _SPEED[specification.queue]
    calibration, recovery = specification.calibration, specification.recovery
    sequences = 0
    if calibration:
        sequences += 2 * calibration.samples * (calibration.sequence_length or length) // length
        if calibration.domain:
            domain = calibration.domain
            sequences += 2 * (domain.samples or 0) * (domain.sequence_length or length) // length
    if specification.evaluation.dataset:
        sequences += 2 * (specification.evaluation.samples or _EVALUATED)
        if specification.evaluation.domain:
            sequences += 2 * (specification.evaluation.domain.samples or _EVALUATED)
        sequences *= 1 + len(specification.evaluation.baselines)
    if recovery.method != "none":
        sequences += 4 * recovery.budget.steps * int(recovery.options.get("batch_size", _BATCH))
    return {
        "seconds": round(_START + sequences * macs / speed, 1),
        "memory_bytes": _memory(specification, inspection, length),
        "basis": _BASIS.format(speed=speed, queue=specification.queue, start=_START),
    }


def _memory(specification: JobSpecification, inspection: Inspection, length: int) -> int:
    """Bytes the runner is likely to need, in float32: the interpreter, what is not in a block, a few
    blocks, the hidden states of the calibration, and for a recovery the whole model with its training
    state."""
    samples = specification.calibration.samples if specification.calibration else 1
    states = 4 * length * inspection.hidden * samples * (2 if inspection.cross_layers else 1)
    sizes = _layer_sizes(inspection)
    memory = _INTERPRETER + 4 * (inspection.parameters - sum(sizes)) + 16 * max(sizes) + states
    if specification.recovery.method == "distillation":
        # Weights, gradients, two moments of the optimiser, and the dense teacher.
        memory += 20 * inspection.parameters
    elif specification.recovery.method != "none":
        memory += 8 * inspection.parameters
    return memory


def _layer_sizes(inspection: Inspection) -> list[int]:
    """Parameters of every layer; where there are several lists of layers, of their weight sites."""
    if all(site.name.startswith(inspection.layer_prefix) for site in inspection.sites):
        return [inspection.layer_parameters] * inspection.layers
    sizes: Counter[int] = Counter()
    for site in inspection.sites:
        sizes[site.layer] += site.size
    return list(sizes.values())
