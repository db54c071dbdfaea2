"""Times of layers in ONNX Runtime, measured in a clean process that knows no torch.

``python -m compression.stages.graphs.timer REQUEST.json`` makes graphs of many layers that do not read one
another, runs them with the runtime's own profile on, and prints the seconds of every layer's kernel as one
line of JSON. Kernels alone are counted: what a layer would need to change the order of its numbers, and the
call itself, are the network's, not the layer's. All layers of a graph are run in turns, so that whatever else
the machine does falls on all of them, and each finds the caches as cold as in a network.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

from compression.graphs.layer_shape import Arrays, LayerShape, alone
from compression.stages.graphs.runtime import PROVIDERS, open_session, read_arrays, run

ROUNDS, LEAST_ROUNDS = 120, 4
CHUNK_SECONDS = 1.5
"""Of the rounds of one graph: a few of large layers tell as much as many of small ones."""
CHUNK_BYTES, CHUNK_LAYERS = 64 << 20, 64
"""Of one graph: more layers would keep the first from being told before the last is built."""
WHOLE_ROUNDS, WHOLE_LEAST, WHOLE_SECONDS = 40, 12, 3.0
OPSET, IR_VERSION = 17, 8
_LAYER = re.compile(r"layer([0-9]+)(?:_nchwc)?_kernel_time")


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of every shape of `layers` (keys), in their order, null for those that no time was left for; of
    one run of the graph `model` on `inputs`, where one is named."""
    whole = None
    if request["model"] is not None:
        whole = _whole(Path(request["model"]), Path(request["inputs"]), request)
    found: list[float | None] = [None] * len(request["layers"])
    end = time.perf_counter() + float(request["seconds"])
    shapes = [LayerShape.from_key(key) for key in request["layers"]]
    for part in _chunks(shapes, str(request["dtype"])):
        if time.perf_counter() > end:
            break
        for place, seconds in _timed([(place, shapes[place]) for place in part], request, end).items():
            found[place] = seconds
    return {"seconds": found, "whole": whole, "runtime": onnxruntime.__version__}


def _whole(model: Path, inputs: Path, request: Mapping[str, Any]) -> float:
    """Seconds of one run."""
    session, (fed, _) = open_session(model, int(request["threads"])), read_arrays(inputs)
    times: list[float] = []
    run(session, fed)
    end = time.perf_counter() + WHOLE_SECONDS
    while len(times) < WHOLE_ROUNDS and (len(times) < WHOLE_LEAST or time.perf_counter() < end):
        started = time.perf_counter()
        run(session, fed)
        times.append(time.perf_counter() - started)
    return _undisturbed(times)


def _chunks(shapes: Sequence[LayerShape], dtype: str) -> Iterator[list[int]]:
    """Places of shapes that fit into one graph."""
    part: list[int] = []
    held = 0
    for place, shape in enumerate(shapes):
        size = (shape.held + shape.elements) * np.dtype(dtype).itemsize
        if part and (held + size > CHUNK_BYTES or len(part) == CHUNK_LAYERS):
            yield part
            part, held = [], 0
        part.append(place)
        held += size
    if part:
        yield part


def _timed(
    layers: Sequence[tuple[int, LayerShape]], request: Mapping[str, Any], end: float
) -> dict[int, float]:
    model, feeds = _model(layers, str(request["dtype"]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, int(request["threads"]))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(request["folder"]) / "layers")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    rounds, last = 0, min(end, time.perf_counter() + CHUNK_SECONDS)
    while rounds < LEAST_ROUNDS or (rounds < ROUNDS and time.perf_counter() < last):
        session.run([], feeds)
        rounds += 1
    profile = Path(session.end_profiling())
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
    finally:
        profile.unlink(missing_ok=True)
    times: dict[int, list[float]] = {}
    for event in events:
        named = _LAYER.fullmatch(event["name"]) if event.get("cat") == "Node" else None
        if named:
            times.setdefault(int(named[1]), []).append(event["dur"] * 1e-6)
    return {place: _undisturbed(one[1:]) for place, one in times.items() if len(one) > 1}


def _model(layers: Sequence[tuple[int, LayerShape]], dtype: str) -> tuple[ModelProto, Arrays]:
    """A graph of layers side by side, and its inputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    feeds: Arrays = {}
    nodes, stored, outputs = [], [], []
    for place, shape in layers:
        node, inputs, weights = alone(shape, f"layer{place}", dtype)
        nodes.append(node)
        feeds |= inputs
        stored += [numpy_helper.from_array(array, name) for name, array in weights.items()]
        outputs.append(helper.make_tensor_value_info(node.output[0], kind, None))
    given = [helper.make_tensor_value_info(name, kind, array.shape) for name, array in feeds.items()]
    graph = helper.make_graph(nodes, "layers", given, outputs, stored)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), feeds


def _undisturbed(times: Sequence[float]) -> float:
    """The mean of the fastest quarter, at least a tenth of a microsecond. What else the machine does only
    adds: a median of a network's runs may be of interrupted ones where that of its short layers is not. Of
    kernels the profile counts whole microseconds, so that one value alone would be coarse."""
    ordered = sorted(times)
    return max(statistics.fmean(ordered[: max(1, len(ordered) // 4)]), 1e-7)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(measure(request)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
