"""Prunes one exported graph to half of its multiply-accumulates and judges what comes out; one line of JSON.

`python -m tests.bench.graph_zoo.prune FILE.onnx`
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from compression.errors import CompressionError, TargetUnreachable
from compression.graphs.costs import CostModel, costs
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.executor import GraphModule
from compression.graphs.folding import fold_norms
from compression.graphs.graph import Graph, read_graph, write_graph
from compression.graphs.masking import disagreement, mask
from compression.graphs.probe import sample_inputs
from compression.graphs.pruning import Chosen, choose_units
from compression.stages.graphs.runtime import TOLERANCE, compare

ASKED, ENOUGH = 0.5, 0.52
"""The share of the multiply-accumulates that is asked for, and what still counts as half."""
ROWS = 3
EXACT = 1e-5
"""How far the cut graph may be from the masked one, relative to the largest output."""


def chosen(anatomy: Anatomy) -> tuple[Chosen, float | None]:
    """The units that go, and the least share that can be reached where it lies above what is asked for."""
    try:
        return choose_units(anatomy, ASKED), None
    except TargetUnreachable as error:
        found = re.search(r"at least ([0-9.]+)", str(error))
        assert found is not None
        least = float(found[1])
        return (choose_units(anatomy, min(least + 0.002, 1.0)), least) if least < 0.999 else ({}, least)


def kept_by(anatomy: Anatomy) -> list[str]:
    """Which operators keep most channels, and why."""
    counts: Counter[str] = Counter()
    for one in anatomy.uncut:
        if not one.reason.startswith("it is the output"):
            counts[re.sub(r"^(\S+) ('[^']*'|of '[^']*')", r"\1", one.reason)] += one.channels
    return [f"{reason} ({count} channels)" for reason, count in counts.most_common(3)]


def against_runtime(graph: Graph, path: Path, inputs: dict[str, torch.Tensor]) -> float:
    """How far ONNX Runtime's outputs of a written graph are from torch's, in parts of what is allowed."""
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in GraphModule(graph).eval().run(inputs).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = dict(
        zip(
            wanted,
            session.run(list(wanted), {name: one.numpy() for name, one in inputs.items()}),
            strict=True,
        )
    )
    difference, allowed = compare({name: np.asarray(one) for name, one in found.items()}, wanted)
    return difference / allowed * TOLERANCE


def judged(path: Path) -> dict[str, Any]:
    """What came of one graph; `fault` is empty where all is well."""
    begun = time.process_time()
    graph = fold_norms(read_graph(path))
    found: dict[str, Any] = {"nodes": len(graph.nodes), "opset": graph.opset}
    inputs = sample_inputs(graph, ROWS, {}, seed=3)
    found["dense"] = against_runtime(graph, path, inputs)
    begun = time.process_time()
    anatomy = analyse(graph)
    found |= {"analysis_seconds": time.process_time() - begun, "groups": len(anatomy.groups)}
    units, least = chosen(anatomy)
    smaller = cut(anatomy, units)
    dense, left = CostModel(anatomy).without({}), costs(smaller)
    found |= {
        "macs": dense.macs,
        "ratio": left.macs / dense.macs,
        "parameters": left.parameters / dense.parameters,
    }
    found["exact"] = disagreement(mask(anatomy, units), smaller, inputs)
    out = path.with_suffix(".pruned")
    onnx.save(write_graph(smaller), out)
    found["runtime"] = against_runtime(smaller, out, inputs)
    out.unlink()
    found |= {"seconds": time.process_time() - begun, "least": least, "kept_by": kept_by(anatomy)}
    return found | {"fault": fault(found)}


def fault(found: dict[str, Any]) -> str:
    """Why a result is no success; "" where it is one."""
    if not found["dense"] <= TOLERANCE:
        return f"the dense graph in torch differs from ONNX Runtime by {found['dense']:.2g}"
    if not found["exact"] <= EXACT:
        return f"the cut graph differs from the masked one by {found['exact']:.2g}"
    if not found["runtime"] <= TOLERANCE:
        return f"the cut graph in ONNX Runtime differs from torch by {found['runtime']:.2g}"
    if not found["ratio"] <= ENOUGH:
        return f"{found['ratio']:.2f} of the multiply-accumulates stay: " + "; ".join(found["kept_by"])
    return ""


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        found = judged(Path(sys.argv[1]))
    except CompressionError as error:
        found = {"fault": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
