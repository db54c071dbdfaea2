"""Which sizes of which axes an integer of a graph is computed from, so that cutting them changes nothing
unseen.
"""

from __future__ import annotations

import numpy as np

from compression.graphs.graph import Node
from compression.graphs.probe import FEW
from compression.graphs.rules.table import Analysis

Sizes = tuple[frozenset[tuple[str, int]], ...]
"""Of every element of an integer value, the (value, axis) whose sizes it depends on."""

REWRITTEN = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Resize": (3,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Tile": (1,), "Pad": (1,),
}  # fmt: skip
"""Inputs that are shapes or places: cutting writes them anew where they depend on what is cut."""
BY_ELEMENT = {
    "Abs", "Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Sub", "Where",
}  # fmt: skip
MOVED = {"Unsqueeze", "Squeeze", "Reshape", "Flatten"}
NONE: frozenset[tuple[str, int]] = frozenset()


class SizeTracker:
    """Follows integers that come from `Shape` and `Size` through a graph, node by node."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.known: dict[str, Sizes] = {}

    def follow(self, node: Node) -> None:
        """Take a node in. Where a size goes into what cutting could not write anew, its axis is frozen."""
        if node.operator in {"Shape", "Size"}:
            self.known[node.outputs[0]] = self._told(node)
            return
        shapes = REWRITTEN.get(node.operator, ())
        for place, name in enumerate(node.inputs):
            if name not in self.known:
                continue
            if place in shapes:
                self._check(node, place, name)
        told = [
            (place, name)
            for place, name in enumerate(node.inputs)
            if name in self.known and place not in shapes
        ]
        if not told:
            return
        made = node.value
        count = int(np.prod(self.analysis.shape(made)))
        if made in self.analysis.probe.floating or count > FEW:
            self._freeze(node, [name for _, name in told])
            return
        self.known[made] = self._made(node, count)

    def _told(self, node: Node) -> Sizes:
        data = node.inputs[0]
        rank = len(self.analysis.shape(data))
        axes = [frozenset({(data, axis)}) for axis in range(rank)]
        if node.operator == "Size":
            return (frozenset[tuple[str, int]]().union(*axes),)
        end = node.attributes.get("end")
        return tuple(axes[node.integer("start", 0) : end if isinstance(end, int) else None])

    def _of(self, name: str) -> Sizes:
        count = int(np.prod(self.analysis.shape(name)))
        return self.known.get(name, (NONE,) * count)

    def _made(self, node: Node, count: int) -> Sizes:
        """What the elements of an integer output depend on: exactly for the usual arithmetic of shapes, on
        everything otherwise."""
        analysis = self.analysis
        sources = [self._of(name) for name in node.inputs if name and name not in analysis.probe.floating]
        if node.operator in MOVED:
            return self._of(node.inputs[0])
        if node.operator == "Concat" and len(analysis.shape(node.outputs[0])) == 1:
            return tuple(one for source in sources for one in source)
        if node.operator in {"Gather", "Slice"} and len(analysis.shape(node.inputs[0])) == 1:
            places = self._taken(node)
            if places is not None and len(places) == count:
                return tuple(self._of(node.inputs[0])[place] for place in places)
        if node.operator in BY_ELEMENT and all(len(source) in {1, count} for source in sources):
            wide = [source * count if len(source) == 1 else source for source in sources]
            return tuple(NONE.union(*column) for column in zip(*wide, strict=True))
        every = NONE.union(*(one for source in sources for one in source))
        return (every,) * count

    def _taken(self, node: Node) -> list[int] | None:
        analysis = self.analysis
        length = analysis.shape(node.inputs[0])[0]
        listed = [analysis.probe.integers(name) for name in node.inputs[1:] if name]
        if any(one is None or None in one for one in listed):
            return None
        numbers = [[int(item or 0) for item in one or ()] for one in listed]
        if node.operator == "Gather":
            return [one % length for one in numbers[0]]
        step = numbers[3][0] if len(numbers) > 3 else 1
        return list(range(*slice(numbers[0][0], numbers[1][0], step).indices(length)))

    def _check(self, node: Node, place: int, name: str) -> None:
        """A shape that depends on sizes is written anew; an element of it that also varies cannot be."""
        if node.operator == "Reshape":
            return
        values = self.analysis.probe.integers(name)
        for element, axes in enumerate(self.known[name]):
            if axes and (values is None or values[element] is None):
                self._freeze_axes(node, axes)

    def _freeze(self, node: Node, names: list[str]) -> None:
        for name in names:
            self._freeze_axes(node, NONE.union(*self.known[name]))

    def _freeze_axes(self, node: Node, axes: frozenset[tuple[str, int]]) -> None:
        for name, axis in sorted(axes):
            self.analysis.freeze(self.analysis.of(name)[axis], node, "computes with its size")

    def finish(self) -> None:
        """Sizes that the network gives out stay."""
        for value in self.analysis.graph.outputs:
            for axes in self.known.get(value.name, ()):
                for name, axis in sorted(axes):
                    self.analysis.labels.freeze(
                        self.analysis.of(name)[axis], f"the output {value.name!r} tells its size"
                    )
