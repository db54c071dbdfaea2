"""A graph as a model that evaluation can ask, and the inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compression.errors import DatasetInvalid
from compression.evaluation.types import Batch
from compression.graphs import batches as graph_batches
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph
from compression.graphs.operators.table import TORCH_TYPES
from compression.graphs.probe import sample_inputs

PIXELS = "pixel_values"


def fixed_batch(graph: Graph) -> int | None:
    """The size of the batch, where the graph takes no other."""
    shape = graph.inputs[0].shape if graph.inputs else None
    return shape[0] if shape and isinstance(shape[0], int) else None


def inputs_of(graph: Graph, pixels: Tensor) -> dict[str, Tensor]:
    """Images [b, c, h, w] as the one input of a graph, in its type."""
    value = graph.inputs[0]
    return {value.name: pixels.to(TORCH_TYPES[value.dtype])}


def calibration_batches(graph: Graph, batches: Sequence[Batch], labelled: str = "") -> graph_batches.Batches:
    """Calibration images as a graph takes them; `labelled` says why labels are needed, if they are.
    DatasetInvalid where these are missing, or a graph takes several images at once and no other number."""
    if (fixed_batch(graph) or 1) > 1:
        raise DatasetInvalid(
            f"the model takes {fixed_batch(graph)} images at once and no other number, so they are not told "
            "apart: export it with a free batch, or use a criterion of weights alone and the update none"
        )
    found = []
    for batch in batches:
        labels = batch.get("labels")
        if labels is None and labelled:
            raise DatasetInvalid(f"{labelled}: give calibration images with labels")
        size = fixed_batch(graph) or len(batch[PIXELS])
        for at in range(0, len(batch[PIXELS]), size):
            pixels = batch[PIXELS][at : at + size]
            part = None if labels is None else labels[at : at + size]
            found.append(graph_batches.Batch(inputs_of(graph, pixels), part))
    return found


class Network:
    """Runs a graph on batches of images (an `Evaluable`): its scores float32 [b, classes]. Outputs are kept,
    so that a second asking for the same batches costs nothing."""

    def __init__(self, graph: Graph, progress: Callable[[int, int], None] | None = None) -> None:
        self._graph = graph
        self._progress = progress
        self._kept: tuple[Sequence[Batch], list[Tensor]] | None = None

    def outputs(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """One output a batch."""
        if self._kept is None or self._kept[0] is not batches:
            self._kept = batches, list(self._run(batches))
        yield from self._kept[1]

    def _run(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        module, size = GraphModule(self._graph).eval(), fixed_batch(self._graph)
        name = self._graph.outputs[0].name
        for number, batch in enumerate(batches):
            pixels = batch[PIXELS]
            with torch.inference_mode():
                parts = [
                    module.run(inputs_of(self._graph, part))[name][:rows].float()
                    for part, rows in _parts(pixels, size)
                ]
            yield torch.cat(parts)
            if self._progress is not None:
                self._progress(number + 1, len(batches))


def _parts(pixels: Tensor, size: int | None) -> Iterator[tuple[Tensor, int]]:
    """Parts of a batch of the size that a graph takes, and how many rows of each are its own; the last is
    filled up with copies of its first row."""
    if size is None:
        yield pixels, len(pixels)
        return
    for part in torch.split(pixels, size):
        missing = size - len(part)
        yield torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part, len(part)


def fixed_inputs(
    graph: Graph, batches: Sequence[Batch] | None, rows: int, sizes: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """Inputs to verify on: the first images, or made from the seed where there are none or too few."""
    rows = fixed_batch(graph) or rows
    if batches and len(batches[0][PIXELS]) >= rows:
        return inputs_of(graph, batches[0][PIXELS][:rows])
    return sample_inputs(graph, rows, sizes, seed % (1 << 63))
