"""How much filters change the data that pass them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.graphs.batches import Batches, BatchInvalid, sample_weights, samples_of
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Floats
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Node
from compression.graphs.patches import patches


@dataclass
class _Sums:
    """Weighed sums of values and their squares, by channel (or group) and position, and of weights."""

    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    count: float = 0.0

    def add(self, values: Tensor, weighed: Tensor) -> None:
        """Values [samples, positions, channels, elements]; spread over samples and elements."""
        values = values.double().cpu()
        self.first = self.first + torch.einsum("n,npce->cp", weighed, values)
        self.second = self.second + torch.einsum("n,npce->cp", weighed, values.square())
        self.count += float(weighed.sum()) * values.shape[-1]

    def deviation(self) -> Tensor:
        """By channel and position."""
        mean = torch.as_tensor(self.first) / self.count
        return (torch.as_tensor(self.second) / self.count - mean.square()).clamp(min=0).sqrt()


def filter_changes(anatomy: Anatomy, batches: Batches, weights: Floats | None) -> dict[str, Floats]:
    """By initializer that makes units, |w| / (weights of its channel) times the channel's sum over positions
    of the deviation of its output, over samples, by the deviation of the window it reads, over samples and
    the window (zero padding counted); float64 of its shape.

    The sum over a channel is the score of Beta-Rank (Homayounfar et al. 2023, arXiv:2304.07461), in the form
    of the authors' code. Left out are weights of other operators than convolutions over one or two axes and
    products with a matrix. Windows that never vary count nothing.
    """
    module = GraphModule(anatomy.graph).eval()
    made = {site.initializer for group in anatomy.groups for site in group.producers()}
    nodes = [node for node in anatomy.graph.nodes if node.input(1) in made and _followed(anatomy, node)]
    outputs, inputs = [_Sums() for _ in nodes], [_Sums() for _ in nodes]
    names = list(dict.fromkeys(name for node in nodes for name in (node.inputs[0], node.value)))
    with torch.no_grad():
        for batch in batches:
            samples = samples_of(anatomy.probe, batch)
            weighed = sample_weights(batch, samples, weights)
            values = module.run(batch.inputs, names)
            for node, out, into in zip(nodes, outputs, inputs, strict=True):
                given = values[node.value]
                rows = given.flatten(2).mT if node.operator == "Conv" else given
                weight = module.initializer(node.inputs[1])
                read = patches(node, values[node.inputs[0]], weight)
                out.add(_by_sample(node, rows.reshape(-1, rows.shape[-1], 1), samples), weighed)
                into.add(_by_sample(node, read.reshape(len(read), _groups(node), -1), samples), weighed)
    found: dict[str, Floats] = {}
    for node, out, into in zip(nodes, outputs, inputs, strict=True):
        change = _change(out.deviation(), into.deviation())
        found[node.inputs[1]] = found.get(node.inputs[1], 0) + _spread(anatomy, node, change)
    return found


def _followed(anatomy: Anatomy, node: Node) -> bool:
    array = anatomy.graph.initializers[node.inputs[1]]
    if node.operator == "Conv":
        return array.ndim in (3, 4)
    return array.ndim == 2 and (
        node.operator == "MatMul" or (node.operator == "Gemm" and not node.integer("transA", 0))
    )


def _groups(node: Node) -> int:
    return node.integer("group", 1) if node.operator == "Conv" else 1


def _by_sample(node: Node, rows: Tensor, samples: int) -> Tensor:
    if len(rows) % samples:
        raise BatchInvalid(f"{node.label}: its samples cannot be told apart: give batches of one sample")
    return rows.reshape(samples, -1, *rows.shape[1:])


def _change(out: Tensor, into: Tensor) -> Tensor:
    """By channel, the sum over positions of its deviation by that of what its group reads."""
    into = into.repeat_interleave(len(out) // len(into), 0)
    return torch.where(into > 0, out / into, 0.0).sum(1)


def _spread(anatomy: Anatomy, node: Node, change: Tensor) -> Floats:
    array = np.abs(anatomy.graph.initializers[node.inputs[1]].astype(np.float64))
    rows = node.operator == "Conv" or bool(node.integer("transB", 0))
    shape = [1] * array.ndim
    shape[0 if rows else 1] = -1
    scaled: Floats = array * change.numpy().reshape(shape) * len(change) / array.size
    return scaled
