"""What a plan says of latency: seconds by the tables of measured times, or why it says none. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import Timing
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
from compression.specification import JobSpecification

NO_TABLE = (
    "No worker of this queue has timed the layers of a model of this shape yet, so nothing is predicted. The "
    "first job that removes neurons, heads, experts or layers from one, or aims at a latency, measures them."
)
ROWS = "Times are known of layers; how much faster a smaller vocabulary is, is not predicted."
UNTIMED = "Times are known of layers with fewer units; those of low rank or of fewer hidden channels are not."
UNKNOWN_CUT = (
    "How much must go for this latency is known once the job has timed the model's layers on its device; a "
    "target beyond reach then fails the job with what can be reached."
)


def predictions(
    specification: JobSpecification,
    inspection: Inspection,
    cut: dict[str, Any],
    timings: Sequence[Timing],
) -> dict[str, Any]:
    """`predictions`: for each device with a table, newest first, the seconds of one forward pass of the dense
    model and of the result; `reason` says why there are none. `cut` is the plan's."""
    granularity = specification.structure.granularity or ""
    if granularity == VOCABULARY:
        return {"reason": ROWS, "predictions": []}
    if granularity == RANK or HIDDEN in GRANULARITIES.get(granularity, ()):
        return {"reason": UNTIMED, "predictions": []}
    if not timings:
        return {"reason": NO_TABLE, "predictions": []}
    found = [_prediction(specification, inspection, cut, timing) for timing in timings]
    return {"reason": None, "predictions": found}


def _prediction(
    specification: JobSpecification, inspection: Inspection, cut: dict[str, Any], timing: Timing
) -> dict[str, Any]:
    dense = timing.dense_seconds(inspection)
    pruned = _pruned(specification, inspection, cut, timing)
    table = timing.result
    return {
        "device": table.device,
        "threads": table.threads,
        "runtime": table.runtime,
        "dtype": {"dense": timing.dense.dtype, "pruned": table.dtype},
        "batch": 1,
        "tokens": table.tokens,
        "measured_at": timing.measured_at,
        "dense": dense,
        "pruned": pruned,
        "ratio": pruned / dense,
    }


def _pruned(
    specification: JobSpecification, inspection: Inspection, cut: dict[str, Any], timing: Timing
) -> float:
    """Single weights that are zero save nothing; layers padded to one width hardly anything."""
    table, layers = timing.result, inspection.layers
    granularity = specification.structure.granularity
    if granularity == "layer":
        return table.seconds(layers - cut["layers_removed"])
    if granularity not in GRANULARITIES or specification.output.layout == "padded":
        return table.seconds(layers)
    counts = {one.kind: one.count for one in inspection.structures}
    widths = {
        kind: round(cut["share"] * counts[kind]) if one["kept"] is None else one["kept"]
        for kind, one in cut["widths"].items()
    }
    return table.seconds(layers, widths)
