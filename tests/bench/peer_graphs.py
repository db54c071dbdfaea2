"""Torch-Pruning's side of `graph_quality.py`: the same graph, images and recovery."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from compression.checkpoint import Store
from compression.graphs.batches import Batch
from compression.graphs.costs import costs
from compression.graphs.executor import GraphModule, to_torch
from compression.graphs.graph import Graph
from compression.graphs.renormalising import reestimate
from compression.graphs.unfolding import measure, unfold
from compression.loading.images.plan import ImagePlan
from compression.preprocessing import Preprocessing
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import PIXELS, GraphRecoveryContext
from compression.stages.graphs.files import read_network
from tests.bench.common import ROOT, reference
from tests.bench.peer_weights import PEERS
from tests.engine.jobs import Recorder

PEER = "torch_pruning"
CPU_SECONDS = 900


@dataclass(frozen=True)
class Peer:
    """One importance of the peer."""

    importance: str


class Side:
    """The images of a run, as the graph takes them."""

    def __init__(self, graph: Graph, how: dict[str, Any], calibrated: int, judged: int, seed: int) -> None:
        data = reference("data", "cifar10")
        paths = {kind: data / f"cifar10-{kind}.parquet" for kind in ("train", "test")}
        config = {"id2label": {number: str(number) for number in range(10)}}
        self.plan = ImagePlan(config, 3, Preprocessing.model_validate(how), paths)
        self._name = graph.inputs[0].name
        calibration = self.plan.calibration("train", calibrated, 1, seed, 64)
        self.calibration = self._fed(calibration.batches)
        self.judged = self._fed(self.plan.evaluation("test", judged, 1).batches)

    def _fed(self, batches: Sequence[Any]) -> list[Batch]:
        return [Batch({self._name: one[PIXELS]}, one.get("labels")) for one in batches]

    def accuracy(self, graph: Graph) -> float:
        """Share of the test images whose class is found."""
        module, right, count = GraphModule(graph).eval(), 0, 0
        with torch.inference_mode():
            for batch in self.judged:
                assert batch.labels is not None
                found = module.run(batch.inputs)[graph.outputs[0].name].argmax(1)
                right, count = right + int((found == batch.labels).sum()), count + len(found)
        return right / count


def peer_line(folder: Path, line: Peer, share: float, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Figures of one run of the peer, recovered as our jobs are."""
    from tests.bench.graph_quality import CALIBRATED, HOW, JUDGED, recovery

    dense = read_network(folder, "model-conv-shortcut.onnx")
    side = Side(dense, HOW, CALIBRATED, JUDGED, seed)
    begun = time.monotonic()
    graph = _pruned(unfold(dense, measure(dense, side.calibration)), side, line, share, seed, threads)
    pruned = reestimate(graph, side.calibration)
    spec = recovery(steps, seed)
    wanted = int(steps * spec["options"]["batch_size"] / 0.9) + 1
    with tempfile.TemporaryDirectory() as scratch:
        result = graph_recoveries["distillation"].recover(
            GraphRecoveryContext(
                method="distillation",
                options=spec["options"],
                steps=steps,
                seed=seed,
                graph=pruned,
                dense=dense,
                data=side.plan.streamed("train", wanted, seed),
                store=Store(Path(scratch), "peer"),
                observer=Recorder(),
                threads=threads,
            )
        )
    before, after = costs(dense), costs(pruned)
    return {
        "dense": side.accuracy(dense),
        "pruned": side.accuracy(pruned),
        "recovered": side.accuracy(result.graph),
        "macs": after.macs / before.macs,
        "parameters": after.parameters / before.parameters,
        "seconds": time.monotonic() - begun,
    }


def _pruned(graph: Graph, side: Side, line: Peer, share: float, seed: int, threads: int) -> Graph:
    """The graph with what the peer leaves of its tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tensors = {name: to_torch(array, name) for name, array in graph.initializers.items()}
        save_file({name: one.contiguous() for name, one in tensors.items()}, place / "tensors.safetensors")
        pixels = torch.cat([next(iter(one.inputs.values())) for one in side.calibration])
        labels = torch.cat([one.labels for one in side.calibration if one.labels is not None])
        save_file({"images": pixels, "labels": labels}, place / "images.safetensors")
        asked = {
            "graph": [
                {
                    "operator": node.operator,
                    "inputs": node.inputs,
                    "outputs": node.outputs,
                    "attributes": {
                        name: value for name, value in node.attributes.items() if not hasattr(value, "dtype")
                    },
                }
                for node in graph.nodes
            ],
            "tensors": str(place / "tensors.safetensors"),
            "images": str(place / "images.safetensors"),
            "out": str(place / "out.safetensors"),
            "input": graph.inputs[0].name,
            "output": graph.outputs[0].name,
            "importance": line.importance,
            "macs": share,
            "seed": seed,
            "threads": threads,
            "cpu_seconds": CPU_SECONDS,
        }
        command = [
            str(PEERS / PEER / "bin" / "python"),
            "-P",  # beside the script lies one that is called as the peer's package
            str(ROOT / "tests" / "bench" / "peers" / "torch_pruning_graph.py"),
            json.dumps(asked),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            told = ran.stderr.strip().splitlines()
            raise RuntimeError(f"the peer ended with {ran.returncode}: {told[-1] if told else 'no message'}")
        found = load_file(place / "out.safetensors")
    arrays = {
        name: found[name].numpy().astype(array.dtype) if name in found else np.asarray(array)
        for name, array in graph.initializers.items()
    }
    return replace(graph, initializers=arrays)
