"""ONNX Runtime in a clean process that knows no torch: whether an artifact is what was evaluated, and how
fast it is.

``python -m compression.stages.graphs.runtime verify|measure REQUEST.json`` prints one line of JSON. A check
that fails ends with 0 too; ``faults`` says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load_file

from compression.evaluation.memory import memory_now, memory_peak
from compression.evaluation.turns import interleave, paired, summarise
from compression.export.files import file_faults

Arrays = dict[str, NDArray[Any]]
INPUT, OUTPUT = "in/", "out/"
TOLERANCE = 1e-4
"""Largest difference from torch in float32, relative to the largest output where that is above 1."""
NARROW = 1e-2
PROVIDERS = ["CPUExecutionProvider"]


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session on the processor with so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=PROVIDERS)


def run(session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    """The outputs by name."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def read_arrays(path: Path) -> tuple[Arrays, Arrays]:
    """Inputs and outputs by name, as `write_arrays` of the job wrote them."""
    found = load_file(path)
    inputs, outputs = (
        {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
        for start in (INPUT, OUTPUT)
    )
    return inputs, outputs


def memory_report(before: int) -> dict[str, Any]:
    """Peak bytes of this process, bytes before a model was loaded, and the difference."""
    peak = memory_peak()
    return {
        "process_bytes": peak,
        "import_bytes": before,
        "model_bytes": max(0, peak - before),
        "device_bytes": None,
    }


def verify(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load the artifact, run it on the fixed inputs and compare with what torch gave for the same graph; a
    free batch must take one sample alone, too."""
    before = memory_now()
    folder = Path(request["folder"])
    inputs, wanted = read_arrays(Path(request["inputs"]))
    started = time.perf_counter()
    session = open_session(folder / request["file"], request["threads"])
    loaded = time.perf_counter() - started
    found = run(session, inputs)
    memory = memory_report(before)
    faults = file_faults(folder)
    difference, tolerance = compare(found, wanted)
    if not difference <= tolerance:
        faults.append(
            f"ONNX Runtime's outputs differ by {difference:.3g} from those of the evaluated graph "
            f"(allowed: {tolerance:.3g})"
        )
    if request["free_batch"]:
        alone = run(session, {name: value[:1] for name, value in inputs.items()})
        other, _ = compare(alone, {name: value[:1] for name, value in found.items()})
        if not other <= tolerance:
            faults.append(f"one sample alone gives outputs that differ by {other:.3g} from those in a batch")
    return {
        "ok": not faults,
        "faults": faults,
        "loader": f"onnxruntime {onnxruntime.__version__}",
        "outputs": sum(value.size for value in wanted.values()),
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "load_seconds": loaded,
        "memory": memory,
    }


def compare(found: Arrays, wanted: Arrays) -> tuple[float, float]:
    """(largest absolute difference, tolerance). Infinite for another name, shape or what is no number;
    outputs that are no floating-point numbers must be equal."""
    difference, scale, allowed = 0.0, 1.0, TOLERANCE
    for name, expected in wanted.items():
        value = found.get(name)
        if value is None or value.shape != expected.shape:
            return float("inf"), allowed
        if expected.dtype.kind != "f":
            difference = max(difference, 0.0 if np.array_equal(value, expected) else float("inf"))
            continue
        if expected.dtype.itemsize < 4:
            allowed = NARROW
        x, y = value.astype(np.float64), expected.astype(np.float64)
        if not np.isfinite(x).all():
            return float("inf"), allowed
        if y.size:
            difference = max(difference, float(np.abs(x - y).max()))
            scale = max(scale, float(np.abs(y).max()))
    return difference, allowed * scale


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """The dense model's peak memory, then both models timed in turns."""
    before = memory_now()
    inputs, _ = read_arrays(Path(request["inputs"]))
    dense = open_session(Path(request["dense"]), request["threads"])
    memory = None
    if "memory" in request["measure"]:
        run(dense, inputs)
        memory = {"dense": memory_report(before), "pruned": None}
    latency = _latency(dense, inputs, request) if "latency" in request["measure"] else None
    return {"latency": latency, "memory": memory}


def _latency(
    dense: onnxruntime.InferenceSession, inputs: Arrays, request: Mapping[str, Any]
) -> dict[str, Any]:
    pruned = open_session(Path(request["pruned"]), request["threads"])
    cases = []
    for number, batch in enumerate(request["batches"]):
        fed = inputs
        if request["free_batch"]:
            # Copies of the first sample: which values are multiplied costs no time.
            fed = {name: np.repeat(value[:1], batch, axis=0) for name, value in inputs.items()}
        calls = [_call(session, fed) for session in (dense, pruned)]
        times = interleave(calls[0], calls[1], int(request["repeats"]), float(request["seconds"]))
        cases.append(
            {
                "name": "batch" if number else "forward",
                "what": f"{batch} samples at once" if batch > 1 else "one sample",
                "batch": batch,
                "tokens": 1,
                "dense": summarise(times[0], batch),
                "pruned": summarise(times[1], batch),
                **paired(*times),
            }
        )
    return {
        "device": request["device"],
        "threads": request["threads"],
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "interleaved": True,
        "dtype": {"dense": request["dtype"], "pruned": request["dtype"]},
        "cases": cases,
    }


def _call(session: onnxruntime.InferenceSession, inputs: Arrays) -> Callable[[], None]:
    def call() -> None:
        session.run(None, inputs)

    return call


def main(arguments: Sequence[str]) -> int:
    """The command."""
    what = {"verify": verify, "measure": measure}[arguments[0]]
    request = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(what(request)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
