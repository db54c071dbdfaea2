"""What a job on a graph would do, as far as the graph's structure tells. No torch.

Which channels can go, and what they cost, takes the shapes of all values, which are seen when the graph is
run; a plan runs nothing, so it says no figure that only the job finds.
"""

from __future__ import annotations

from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.anatomy.graph_cut import left_whole, weights_asked, weights_cut
from compression.anatomy.inspection import Inspection
from compression.specification import JobSpecification, quantity

_START = 10.0
_IMAGE = 0.005
_INTERPRETER = 700 << 20
UNKNOWN = (
    "Which channels of a graph can go, and its multiply-accumulates, are found when the job runs it: the "
    "plan says what is asked for. A target beyond reach fails the job with what can be reached and the "
    "operators that keep channels."
)
ZEROS = "Zeros are stored and multiplied like any other number: the file and its time stay as they are."
BASIS = (
    "The time to start, read and measure, and 5 ms for each image that both models are judged on; a network "
    "that takes longer for an image takes longer. Memory: the interpreter and four copies of the weights."
)
NO_TIMES = "The layers of graphs are not timed; the job measures the dense and the pruned model."


def plan_graph(specification: JobSpecification, inspection: Inspection) -> dict[str, Any]:
    """The plan of a resolved specification for a graph, as JSON data: `dense` has the figures that are known
    (parameters, bytes), `asked` the bound that the target sets, as an amount where it is known."""
    target = specification.target
    whole = specification.structure.granularity == CHANNEL
    nothing: dict[str, Any] = {"sites": [], "weights_removed": None, "layers_removed": None}
    evaluated = specification.evaluation.samples or 0 if specification.evaluation.dataset else 0
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
            "seconds": round(_START + 2 * evaluated * _IMAGE, 1),
            "memory_bytes": _INTERPRETER + 4 * inspection.bytes,
            "basis": BASIS,
        },
        "notes": [UNKNOWN] if whole else [ZEROS, *left_whole(specification, inspection)],
    }


def _amount(specification: JobSpecification, inspection: Inspection) -> int | None:
    """Parameters, bytes or multiply-accumulates that may stay; None where only the job knows."""
    if specification.structure.granularity != CHANNEL:
        return weights_asked(specification, inspection)
    target = specification.target
    if target.kind == "sparsity":
        return int((1 - float(target.value)) * inspection.parameters)
    form, amount = quantity(target.kind, target.value)
    if form == "absolute":
        return int(amount)
    known = {"parameters": inspection.parameters, "bytes": inspection.bytes}
    return int(amount * known[target.kind]) if target.kind in known else None
