"""What a job on a graph would do, as far as the graph's structure tells. No torch.

Which channels can go, and what they cost, takes the shapes of all values, which are seen when the graph is
run; a plan runs nothing, so it says no figure that only the job finds.
"""

from __future__ import annotations

import math
from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.anatomy.graph_cut import left_whole, weights_asked, weights_cut
from compression.anatomy.inspection import Inspection
from compression.specification import JobSpecification, quantity

_START = 10.0
_IMAGE = 0.005
_INTERPRETER = 700 << 20
_KEPT_IMAGES = 512 << 20
UNKNOWN = (
    "Which channels of a graph can go, and its multiply-accumulates, are found when the job runs it: the "
    "plan says what is asked for. A target beyond reach fails the job with what can be reached and the "
    "operators that keep channels."
)
ZEROS = "Zeros are stored and multiplied like any other number: the file and its time stay as they are."
BASIS = (
    "The time to start, read and measure, and 5 ms for each image that a model is judged on, four times that "
    "for each that a recovery learns from; a network that takes longer for an image takes longer. Memory: "
    "the interpreter and four copies of the weights; with a recovery nine, and the images that it keeps."
)
NO_TIMES = (
    "Which layers a graph has in which shapes only the job sees, so nothing is predicted here. A job that "
    "aims at a latency times them on its device first; every job measures the dense and the pruned model."
)


def plan_graph(specification: JobSpecification, inspection: Inspection) -> dict[str, Any]:
    """The plan of a resolved specification for a graph, as JSON data: `dense` has the figures that are known
    (parameters, bytes), `asked` the bound that the target sets, as an amount where it is known."""
    target = specification.target
    whole = specification.structure.granularity == CHANNEL
    nothing: dict[str, Any] = {"sites": [], "weights_removed": None, "layers_removed": None}
    return {
        "valid": True,
        "dense": {"parameters": inspection.parameters, "bytes": inspection.bytes},
        "pruned": None,
        "asked": {"kind": target.kind, "value": target.value, "at_most": _amount(specification, inspection)},
        "ratios": {},
        "latency": {"reason": NO_TIMES, "predictions": []},
        "cut": nothing if whole else weights_cut(specification, inspection),
        "sequence_length": None,
        "estimate": {
            "seconds": round(_START + _images(specification) * _IMAGE, 1),
            "memory_bytes": _INTERPRETER + _memory(specification, inspection),
            "basis": BASIS,
        },
        "notes": [UNKNOWN] if whole else [ZEROS, *left_whole(specification, inspection)],
    }


def _images(specification: JobSpecification) -> int:
    """How many images networks see: every state is judged, and a step of a recovery costs as much as four
    passes (forward and backward of the cut graph, forward of the dense one); statistics take one."""
    evaluation, recovery = specification.evaluation, specification.recovery
    judged = evaluation.samples or 0 if evaluation.dataset else 0
    if recovery.method == "none":
        return 2 * judged
    passes = 1 if recovery.method == "batchnorm" else 4
    return 3 * judged + passes * recovery.budget.steps * int(recovery.options.get("batch_size", 1))


def _memory(specification: JobSpecification, inspection: Inspection) -> int:
    """Bytes of weights (a recovery has masters, gradients, momentum, its best state and the dense graph
    besides) and of images, one byte a value, up to what is kept."""
    recovery = specification.recovery
    if recovery.method == "none":
        return 4 * inspection.bytes
    learnt = recovery.budget.steps * int(recovery.options.get("batch_size", 1))
    return 9 * inspection.bytes + min(_KEPT_IMAGES, learnt * math.prod(inspection.image or (0,)))


def _amount(specification: JobSpecification, inspection: Inspection) -> int | None:
    """Parameters, bytes or multiply-accumulates that may stay; None where only the job knows, and for
    seconds."""
    if specification.structure.granularity != CHANNEL:
        return weights_asked(specification, inspection)
    target = specification.target
    if target.kind == "latency":
        return None
    if target.kind == "sparsity":
        return int((1 - float(target.value)) * inspection.parameters)
    form, amount = quantity(target.kind, target.value)
    if form == "absolute":
        return int(amount)
    known = {"parameters": inspection.parameters, "bytes": inspection.bytes}
    return int(amount * known[target.kind]) if target.kind in known else None
