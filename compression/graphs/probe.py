"""What shapes the values of a graph have: it is run on two samples that differ in whatever size may vary."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.graphs.errors import GraphInvalid, OperatorUnknown
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, Value
from compression.graphs.operators.table import TORCH_TYPES

BATCHES = (2, 3)
"""The first axis of the inputs in the two samples, where it may vary."""
FEW = 256
"""Values of integers with so many elements at most are kept: they may be shapes, places or indices."""

Shape = tuple[int, ...]
Integers = tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """Shapes of all values and initializers in the first and in the second sample, small integer values,
    and the element types of what is float."""

    graph: Graph
    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]]
    numbers: tuple[Mapping[str, Integers], Mapping[str, Integers]]
    kinds: Mapping[str, str]

    @functools.cached_property
    def floating(self) -> frozenset[str]:
        """Names of what is float."""
        return frozenset(self.kinds)

    def shape(self, value: str) -> Shape:
        """The shape of a value in the first sample."""
        return self.shapes[0][value]

    def pairs(self, value: str) -> list[tuple[int, int]]:
        """Of every axis its size in both samples."""
        return list(zip(self.shapes[0][value], self.shapes[1][value], strict=True))

    def varies(self, value: str, axis: int) -> bool:
        """Whether the size of an axis varies with the samples."""
        return self.shapes[0][value][axis] != self.shapes[1][value][axis]

    def integers(self, value: str) -> tuple[int | None, ...] | None:
        """An integer value, flat, None for each element that varies; None where it is large or unknown."""
        first, second = (numbers.get(value) for numbers in self.numbers)
        if first is None or second is None or len(first) != len(second):
            return None
        return tuple(one if one == other else None for one, other in zip(first, second, strict=True))


def sample_inputs(graph: Graph, batch: int, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs (integers are zero). `sizes` are those of named axes; an unnamed or unlisted first
    axis is the batch.

    GraphInvalid for a size that nothing says.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for value in graph.inputs:
        shape = [_size(value, axis, batch, sizes) for axis in range(len(value.shape or ()))]
        kind = TORCH_TYPES.get(value.dtype)
        if kind is None or value.shape is None:
            raise OperatorUnknown(
                f"the input {value.name!r} has no shape or an element type that is not run here"
            )
        if kind.is_floating_point:
            found[value.name] = torch.randn(shape, generator=generator).to(kind)
        else:
            found[value.name] = torch.zeros(shape, dtype=kind)
    return found


def _size(value: Value, axis: int, batch: int, sizes: Mapping[str, int]) -> int:
    assert value.shape is not None
    known = value.shape[axis]
    if isinstance(known, int):
        return known
    if known is not None and known in sizes:
        return sizes[known]
    if axis == 0:
        return batch
    name = known or f"axis {axis}"
    raise GraphInvalid(f"the input {value.name!r} has an axis of no given size ({name}): say how long it is")


def probe(graph: Graph, sizes: Mapping[str, int] | None = None) -> Probe:
    """Run the graph on two samples. GraphInvalid if it does not run, or gives other ranks for another
    batch."""
    module = GraphModule(graph).eval()
    shapes: list[dict[str, Shape]] = []
    numbers: list[dict[str, Integers]] = []
    kinds: dict[str, str] = {}
    for batch in BATCHES:
        seen: dict[str, Shape] = {}
        counted: dict[str, Integers] = {}
        _watch_all(module, seen, counted, kinds)
        with torch.no_grad():
            module.run(sample_inputs(graph, batch, sizes or {}))
        module.hooks.clear()
        for name in graph.initializers:
            _note(name, module.initializer(name), seen, counted, kinds)
        shapes.append(seen)
        numbers.append(counted)
    for name, shape in shapes[0].items():
        if len(shape) != len(shapes[1].get(name, ())):
            raise GraphInvalid(f"the value {name!r} has another number of axes for another batch")
    return Probe(graph, (shapes[0], shapes[1]), (numbers[0], numbers[1]), kinds)


def _watch_all(
    module: GraphModule, seen: dict[str, Shape], counted: dict[str, Integers], kinds: dict[str, str]
) -> None:
    names = [value.name for value in module.graph.inputs]
    names += [name for node in module.graph.nodes for name in node.outputs if name]
    for name in names:

        def note(tensor: Tensor, name: str = name) -> None:
            _note(name, tensor, seen, counted, kinds)

        module.watch(name, note)


def _note(
    name: str, tensor: Tensor, seen: dict[str, Shape], counted: dict[str, Integers], kinds: dict[str, str]
) -> None:
    seen[name] = tuple(tensor.shape)
    if tensor.is_floating_point():
        kinds[name] = str(tensor.dtype).removeprefix("torch.")
    elif tensor.numel() <= FEW and tensor.dtype != torch.bool:
        counted[name] = tuple(int(item) for item in tensor.flatten().tolist())
