"""Whether a cut graph computes what the masked one does, whether ONNX Runtime gives what was evaluated, and
what it costs there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compression.errors import ArtifactVerificationFailed, CompressionError
from compression.evaluation import probe
from compression.evaluation.measure import MeasurementFailed, with_pruned_memory
from compression.export.artifact import Artifact
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph
from compression.graphs.masking import disagreement, mask
from compression.graphs.pruning import Chosen
from compression.stages.graphs.network import fixed_batch
from compression.stages.graphs.runtime import INPUT, OUTPUT
from compression.stages.job import Loaded

MODULE = "compression.stages.graphs.runtime"
ROWS = 4
EXACT = 1e-5
NARROW = 1e-2
BATCHES = (1, 16)
REPEATS, SECONDS = 20, 20.0


class CutInexact(CompressionError):
    """The cut graph does not compute what the masked one does, so nothing is published."""

    code = "cut_inexact"


def check_exact(
    anatomy: Anatomy, units: Chosen, smaller: Graph, inputs: Mapping[str, Tensor], dtype: str
) -> float:
    """By how much the outputs of the cut and of the masked graph differ, relative to the largest. Raises
    CutInexact."""
    found = disagreement(mask(anatomy, units), smaller, inputs)
    allowed = NARROW if dtype == "float16" else EXACT
    if not found <= allowed:
        raise CutInexact(
            f"without its channels the graph gives outputs that differ by {found:.3g} from those with the "
            f"channels set to zero (allowed: {allowed:.3g}); nothing is published. Please report the model."
        )
    return found


def free_batch(anatomy: Anatomy) -> bool:
    """Whether a graph takes batches of any size, as the first axis of all inputs and outputs."""
    graph, seen = anatomy.graph, anatomy.probe
    names = [value.name for value in (*graph.inputs, *graph.outputs)]
    return fixed_batch(graph) is None and all(seen.shape(name) and seen.varies(name, 0) for name in names)


def write_arrays(path: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Path:
    """Inputs and outputs by name, for the clean process; gives the path."""
    found = {f"{INPUT}{name}": value for name, value in inputs.items()}
    found |= {f"{OUTPUT}{name}": value for name, value in outputs.items()}
    save_file({name: value.contiguous().clone() for name, value in found.items()}, path)
    return path


class Checks:
    """The clean processes that look at an artifact."""

    def __init__(
        self, loaded: Loaded, anatomy: Anatomy, smaller: Graph, inputs: Mapping[str, Tensor]
    ) -> None:
        self._loaded = loaded
        with torch.inference_mode():
            outputs = GraphModule(smaller).eval().run(inputs)
        self._common: dict[str, Any] = {
            "inputs": str(write_arrays(loaded.work / "expected.safetensors", inputs, outputs)),
            "threads": loaded.request.threads,
            "free_batch": free_batch(anatomy),
        }
        self._file = loaded.admission.weights[0]
        self._rows = next((len(value) for value in inputs.values() if value.ndim), 1)

    def verify(self, artifact: Artifact) -> dict[str, Any]:
        """Load and run the artifact as users do. Raises ArtifactVerificationFailed with every fault."""
        try:
            found = self._ask("verify", folder=str(artifact.folder), file=self._file)
        except probe.ChildFailed as error:
            detail = error.detail.replace(str(artifact.folder), artifact.folder.name)
            raise ArtifactVerificationFailed(f"ONNX Runtime could not run the artifact: {detail}") from None
        if found["faults"]:
            raise ArtifactVerificationFailed("; ".join(found["faults"]))
        return found

    def measure(self, artifact: Artifact, verified: dict[str, Any]) -> dict[str, Any]:
        """Latency and peak memory of the dense and the pruned model. Raises MeasurementFailed."""
        wanted = self._loaded.specification.evaluation.measure
        if not wanted:
            return {"latency": None, "memory": None}
        try:
            found = self._ask(
                "measure",
                dense=str(self._loaded.folder.resolve() / self._file),
                pruned=str(artifact.folder / self._file),
                measure=list(wanted),
                batches=list(BATCHES) if self._common["free_batch"] else [self._rows],
                repeats=REPEATS,
                seconds=SECONDS,
                device=probe.device_name("cpu"),
                dtype=self._loaded.admission.dtype,
            )
        except probe.ChildFailed as error:
            raise MeasurementFailed(f"measuring failed: {error.detail}") from None
        return with_pruned_memory(found, verified)

    def _ask(self, what: str, **request: Any) -> dict[str, Any]:
        path = self._loaded.work / "scratch" / f"{what}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self._common, **request}), encoding="utf-8")
        return probe.child(MODULE, [what, str(path)], threads=self._loaded.request.threads)
