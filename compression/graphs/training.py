"""A graph that is trained: its weights as masters, and what a batch of images is to it.

Weights are trained in float32, whatever type the file keeps them in; a float16 or bfloat16 graph computes in
its own type, with BatchNormalizations whose scales and statistics are float32. Running statistics move with
the batches as ONNX says (`momentum` of the old, the rest of the batch's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from compression.errors import RecoveryImpossible
from compression.graphs.executor import GraphModule, to_numpy, to_torch, trained_initializers
from compression.graphs.graph import Graph

HALVES = (torch.float16, torch.bfloat16)
ARITHMETIC = {"Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum", "Where"}
"""Operators that weights and constants alike go into."""


class GraphTrained:
    """The weights of a graph (`recovery.training.Trained`).

    `masters`: float32 leaf tensors (float64 where the file has that) by the name of the initializer;
    `buffers`: running means and variances, float32 as well; `module` computes with them. `frozen`:
    BatchNormalizations use their running statistics in training too, which then stay. `only`: the
    initializers to train (None: all that `weights_of` names). RecoveryImpossible where nothing is left to
    train.
    """

    def __init__(self, graph: Graph, *, frozen: bool = False, only: Iterable[str] | None = None) -> None:
        self.frozen = frozen
        self.module = GraphModule(graph)
        names = weights_of(graph)
        chosen = names if only is None else names & set(only)
        if not chosen:
            raise RecoveryImpossible("the graph has no weights that could be trained")
        statistics = _widened(self.module)
        self.module.requires_grad_(False)
        known = self.module.named_weights()
        self._trained = {name: known[name] for name in graph.initializers if name in chosen}
        self._masters: dict[str, Tensor] = {}
        for name, weight in self._trained.items():
            weight.requires_grad_(True)
            half = weight.dtype in HALVES
            self._masters[name] = weight.detach().float().requires_grad_(True) if half else weight
        self._buffers = {} if frozen else {name: self.module.initializer(name) for name in statistics}
        self.train(True)

    @property
    def masters(self) -> Mapping[str, Tensor]:
        return self._masters

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        return self._buffers

    def train(self, on: bool) -> None:
        """Whether BatchNormalizations use the batch's statistics and move their own (never if frozen)."""
        self.module.train(on and not self.frozen)

    def gather(self) -> None:
        """Bring gradients of half weights onto their masters; the others are masters themselves."""
        for name, weight in self._trained.items():
            master = self._masters[name]
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float()
                weight.grad = None

    def publish(self) -> None:
        """Round the masters of half weights into the module."""
        with torch.no_grad():
            for name, weight in self._trained.items():
                if self._masters[name] is not weight:
                    weight.copy_(self._masters[name])

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The trained initializers and the statistics, in the types of the file."""
        arrays = self.graph().initializers
        for name in (*self._masters, *self._buffers):
            yield name, to_torch(arrays[name], name)

    def graph(self) -> Graph:
        """The graph with the weights and statistics as they are now, in the types of the file."""
        arrays = dict(self.module.graph.initializers)
        for name, tensor in {**self._masters, **self._buffers}.items():
            arrays[name] = to_numpy(tensor, arrays[name])
        return replace(self.module.graph, initializers=arrays)


def _widened(module: GraphModule) -> list[str]:
    """Make the scales and statistics of BatchNormalizations float32 where they are of a half type; the names
    of the statistics."""
    statistics: list[str] = []
    for node in module.graph.nodes:
        if node.operator != "BatchNormalization":
            continue
        for place, name in enumerate(node.inputs[1:5]):
            if name not in module.graph.initializers:
                continue
            tensor = module.initializer(name)
            if tensor.dtype in HALVES:
                tensor.data = tensor.data.float()
            if place >= 2:
                statistics.append(name)
    return list(dict.fromkeys(statistics))


def weights_of(graph: Graph) -> set[str]:
    """Names of the initializers that are weights: float, with axes, of no input that training leaves alone,
    and no constants of arithmetic. Constants are single numbers that a value is multiplied by or added to,
    and whatever arithmetic is done with the inputs before the first operator with weights of its own (the
    normalisation of images)."""
    trained = trained_initializers(graph)
    constants: set[str] = set()
    raw = {value.name for value in graph.inputs}
    for node in graph.nodes:
        stored = [name for name in node.inputs if name in trained]
        computed = [name for name in node.inputs if name and name not in graph.initializers]
        early = bool(computed) and all(name in raw for name in computed)
        if node.operator in ARITHMETIC:
            constants.update(name for name in stored if early or graph.initializers[name].size == 1)
        if early and (node.operator in ARITHMETIC or not stored):
            raw.update(node.outputs)
    return trained - constants


def watching(graph: Graph) -> GraphModule:
    """A module that learns nothing: running statistics, no gradients."""
    module = GraphModule(graph).eval()
    module.requires_grad_(False)
    return module
