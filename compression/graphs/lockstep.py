"""A graph run node by node over all batches at once, so that weights may change between the nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.graphs.batches import Batches
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, Node
from compression.graphs.operators import Circumstances, execute


class Lockstep:
    """The values of a graph for every batch, up to some node. Values are freed after their last use and,
    where they are wanted outside, after the next `advance`: memory holds what is live of all batches."""

    def __init__(self, graph: Graph, batches: Batches) -> None:
        self.graph = graph
        self.values: list[dict[str, Tensor]] = [dict(batch.inputs) for batch in batches]
        module = GraphModule(graph)
        self.initializers = {name: module.initializer(name).detach() for name in graph.initializers}
        self.places = {name: place for place, node in enumerate(graph.nodes) for name in node.outputs if name}
        self._done = 0
        last: dict[str, int] = {}
        for place, node in enumerate(graph.nodes):
            for name in (*node.inputs, *node.outputs):
                last[name] = place
        self._frees: list[list[str]] = [[] for _ in graph.nodes]
        for name, place in last.items():
            self._frees[place].append(name)

    def advance(self, value: str) -> None:
        """Run all nodes up to the one that computes a value."""
        with torch.no_grad():
            while self._done <= self.places[value]:
                for name in self._frees[self._done - 1] if self._done else ():
                    for values in self.values:
                        values.pop(name, None)
                self._step(self.graph.nodes[self._done])
                self._done += 1

    def before(self, value: str) -> None:
        """Run all nodes before the one that computes a value."""
        place = self.places[value]
        if place and self._done < place:
            self.advance(next(name for name in self.graph.nodes[place - 1].outputs if name))

    def _step(self, node: Node) -> None:
        for place in range(len(self.values)):
            for name, made in zip(node.outputs, self.outputs(node, place), strict=False):
                if name:
                    self.values[place][name] = made

    def outputs(self, node: Node, batch: int) -> tuple[Tensor, ...]:
        """What a node gives for a batch with the initializers as they are."""
        arguments = [self._value(batch, name) if name else None for name in node.inputs]
        with torch.no_grad():
            return execute(node, arguments, Circumstances(self.graph.opset))

    def _value(self, batch: int, name: str) -> Tensor:
        return self.values[batch][name] if name in self.values[batch] else self.initializers[name]
