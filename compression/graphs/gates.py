"""Where units are read: one gate for each edge of a graph along which a node sums over units.

A unit that is read by several nodes has several gates. An `Identity` is put in front of every edge, so
that a hook of `GraphModule` sees what one reader gets and no other does. Zeroing a unit at all its gates
is the same as removing it; the derivative at a gate that is one counts every path once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.graph import Graph, Node
from compression.graphs.operators.reduction import reduced_axes
from compression.graphs.rules.normalisation import sums
from compression.graphs.signs import nonnegative_values

RECURRENT = {"GRU", "LSTM", "RNN"}


@dataclass(frozen=True)
class Gate:
    """An edge along which units are read. `value`: the gated copy of `source`, read by the node that
    computes `reader` as its input `place`; `axis`: where the units are; `units`: int64 [size of the axis],
    numbers of units (as in `Gates`), -1 for what is no unit; `samples`: the axis that holds the batch,
    None if none does."""

    value: str
    source: str
    reader: str
    place: int
    axis: int
    units: NDArray[np.int64]
    samples: int | None


@dataclass(frozen=True)
class Gates:
    """A graph with its gates. `first` numbers units: by the name of a group, the number of its first
    unit. `silent`: names of groups that gates say nothing of, with the reason."""

    anatomy: Anatomy
    graph: Graph
    gates: tuple[Gate, ...]
    first: dict[str, int]
    units: int
    silent: dict[str, str]

    def of(self, group: Group) -> slice:
        """The numbers of a group's units."""
        start = self.first[group.name]
        return slice(start, start + group.units)


def gated(anatomy: Anatomy) -> Gates:
    """The graph of an anatomy with a gate at every edge along which units are read."""
    first, numbers = _numbers(anatomy)
    derived, nonnegative = _derived(anatomy.graph), nonnegative_values(anatomy.graph)
    taken = set(anatomy.probe.shapes[0])
    nodes: list[Node] = []
    gates: list[Gate] = []
    for node in anatomy.graph.nodes:
        inputs = list(node.inputs)
        for place, axes in _read(anatomy, node, derived, nonnegative).items():
            source = node.inputs[place]
            value = f"{source}.gate.{len(gates)}"
            while value in taken:
                value += "_"
            nodes.append(Node("", "Identity", "", (source,), (value,)))
            inputs[place] = value
            for axis in axes:
                ids = anatomy.axes[source][axis]
                assert ids is not None
                samples = _samples(anatomy, source)
                gates.append(Gate(value, source, node.value, place, axis, numbers[ids], samples))
        nodes.append(replace(node, inputs=tuple(inputs)))
    found = [gate for gate in gates if (gate.units >= 0).any()]
    silent = _silent(anatomy, found, first)
    count = sum(group.units for group in anatomy.groups)
    return Gates(anatomy, replace(anatomy.graph, nodes=tuple(nodes)), tuple(found), first, count, silent)


def _numbers(anatomy: Anatomy) -> tuple[dict[str, int], NDArray[np.int64]]:
    """The number of every group's first unit, and by label the number of its unit or -1."""
    first: dict[str, int] = {}
    numbers = np.full(anatomy.label_count, -1, dtype=np.int64)
    count = 0
    for group in anatomy.groups:
        first[group.name] = count
        numbers[group.labels] = np.arange(count, count + group.units)
        count += group.units
    return first, numbers


def _derived(graph: Graph) -> set[str]:
    """Values that depend on no input of the network."""
    found = set(graph.initializers)
    for node in graph.nodes:
        names = [name for name in node.inputs if name]
        if names and all(name in found for name in names):
            found.update(node.outputs)
    return found


def _read(
    anatomy: Anatomy, node: Node, derived: set[str], nonnegative: frozenset[str]
) -> dict[int, list[int]]:
    """By the place of an input of a node, its axes with units that the node sums over; of sides that are
    multiplied, one."""
    found: dict[int, list[int]] = {}
    for sides in _sums(anatomy, node, nonnegative):
        named = [(place, axis) for place, axis in sides if anatomy.axes.get(node.inputs[place])]
        if not named:
            continue
        place, axis = next((side for side in named if node.inputs[side[0]] not in derived), named[0])
        if anatomy.axes[node.inputs[place]][axis] is not None:
            found.setdefault(place, []).append(axis)
    return found


def _sums(anatomy: Anatomy, node: Node, nonnegative: frozenset[str]) -> Iterator[list[tuple[int, int]]]:
    """The (input, axis) pairs that a node multiplies and sums over together."""
    ranks = [len(anatomy.probe.shapes[0].get(name, ())) for name in node.inputs]
    if node.operator in {"Conv", "ConvTranspose"}:
        inside = anatomy.axes.get(node.inputs[1], (None, None))[1]
        grouped = node.integer("group", 1) > 1
        # where whole groups go (depthwise, say) a unit passes through and is read further on
        if not grouped or (node.operator == "Conv" and _of_units(anatomy, inside)):
            yield [(0, 1)]
    elif node.operator == "MatMul":
        yield [(0, ranks[0] - 1), (1, max(ranks[1] - 2, 0))]
    elif node.operator == "Gemm":
        yield [(0, 1 - node.integer("transA", 0)), (1, node.integer("transB", 0))]
    elif node.operator == "Einsum":
        terms, _, result = node.text("equation", "").replace(" ", "").partition("->")
        letters = terms.split(",")
        for letter in dict.fromkeys(terms.replace(",", "")):
            if letter not in result and letter.isalpha() and "." not in terms:
                yield [(place, term.index(letter)) for place, term in enumerate(letters) if letter in term]
    elif node.operator in RECURRENT:
        yield [(0, 2)]
    elif sums(node, nonnegative):
        given = anatomy.probe.integers(node.inputs[1]) if node.input(1) else None
        listed = None if given is None else [one for one in given if one is not None]
        for axis in reduced_axes(node, listed, ranks[0]):
            yield [(0, axis)]


def _of_units(anatomy: Anatomy, ids: NDArray[np.int64] | None) -> bool:
    if ids is None:
        return False
    return any(bool(np.isin(ids, group.labels).any()) for group in anatomy.groups)


def _samples(anatomy: Anatomy, value: str) -> int | None:
    sizes = len(anatomy.probe.shape(value))
    return next((axis for axis in range(sizes) if anatomy.probe.varies(value, axis)), None)


def _silent(anatomy: Anatomy, gates: list[Gate], first: dict[str, int]) -> dict[str, str]:
    again = {node.inputs[2]: node.label for node in anatomy.graph.nodes if node.operator in RECURRENT}
    seen = (
        np.unique(np.concatenate([gate.units for gate in gates])) if gates else np.array([], dtype=np.int64)
    )
    found: dict[str, str] = {}
    for group in anatomy.groups:
        back = [
            again[site.initializer] for site in group.sites if site.initializer in again and site.axis == 2
        ]
        units = np.arange(first[group.name], first[group.name] + group.units)
        if back:
            found[group.name] = f"{back[0]} reads its units again in the next step, inside the operator"
        elif not np.isin(units, seen).all():
            found[group.name] = "no operator sums over its units"
    return found
