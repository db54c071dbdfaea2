"""What operators know of sizes, written anew after a cut: attributes, and inputs that are shapes or
places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from compression.graphs.errors import CutImpossible
from compression.graphs.graph import Node
from compression.graphs.operators.reduction import reduced_axes
from compression.graphs.removal import Cut

Rewrite = Callable[[Cut, Node], Node]
REWRITES: dict[str, Rewrite] = {}


def rewrites(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Register a function as what rewrites these operators."""

    def register(function: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(names, function))
        return function

    return register


def rewrite(cut: Cut, node: Node) -> Node:
    """The node as it is after the cut; nodes that must run before it are left in `cut.before`."""
    found = None if node.domain else REWRITES.get(node.operator)
    return node if found is None else found(cut, node)


def _groups_left(cut: Cut, node: Node, groups: int) -> int:
    kept = cut.keep(node.inputs[0], 1)
    return groups if kept is None else int(kept.reshape(groups, -1).any(1).sum())


@rewrites("Conv", "ConvTranspose")
def convolution(cut: Cut, node: Node) -> Node:
    groups = node.integer("group", 1)
    left = _groups_left(cut, node, groups) if groups > 1 else 1
    return node if left == groups else node.with_(group=left)


@rewrites("GroupNormalization")
def group_normalization(cut: Cut, node: Node) -> Node:
    groups = node.integer("num_groups", 1)
    left = _groups_left(cut, node, groups)
    return node if left == groups else node.with_(num_groups=left)


@rewrites("LSTM", "GRU", "RNN")
def recurrent(cut: Cut, node: Node) -> Node:
    width = cut.size(node.inputs[2], 2)
    return node if cut.keep(node.inputs[2], 2) is None else node.with_(hidden_size=width)


def _input(node: Node, place: int, name: str) -> Node:
    inputs = list(node.inputs) + [""] * (place + 1 - len(node.inputs))
    inputs[place] = name
    return replace(node, inputs=tuple(inputs))


def _vector(cut: Cut, node: Node, place: int, what: str, wanted: Mapping[int, int]) -> Node:
    """The node with the elements `wanted` of an integer input changed; the others are as they are
    computed."""
    old = node.inputs[place]
    known = cut.anatomy.probe.integers(old)
    if known is None:
        raise CutImpossible(f"{node.label}: the sizes in {old!r} are unknown")
    if all(number in wanted or item is not None for number, item in enumerate(known)):
        values = [wanted.get(number, item) for number, item in enumerate(known)]
        return _input(node, place, cut.constant(node, what, np.array(values, dtype=np.int64)))
    stays = np.array([0 if number in wanted else 1 for number in range(len(known))], dtype=np.int64)
    added = np.array([wanted.get(number, 0) for number in range(len(known))], dtype=np.int64)
    factor, term = cut.constant(node, f"{what}.stays", stays), cut.constant(node, f"{what}.set", added)
    scaled, made = f"{factor}.product", f"{factor}.sum"
    cut.before.append(Node(scaled, "Mul", "", (old, factor), (scaled,)))
    cut.before.append(Node(made, "Add", "", (scaled, term), (made,)))
    return _input(node, place, made)


@rewrites("Reshape")
def reshape(cut: Cut, node: Node) -> Node:
    """Sizes that do not vary are written; of those that do, one that stays in its place is copied, one
    inferred."""
    data, made = node.inputs[0], node.outputs[0]
    if not (cut.changes(made) or cut.changes(data) or cut.told(node.inputs[1])):
        return node
    probe = cut.anatomy.probe
    before = probe.pairs(data)
    wanted: dict[int, int] = {}
    for axis, pair in enumerate(probe.pairs(made)):
        if pair[0] == pair[1]:
            wanted[axis] = cut.size(made, axis)
        elif axis < len(before) and before[axis] == pair and not node.integer("allowzero", 0):
            wanted[axis] = 0
        elif -1 not in wanted.values():
            wanted[axis] = -1
    return _vector(cut, node, 1, "shape", wanted)


@rewrites("Expand", "ConstantOfShape")
def stretch(cut: Cut, node: Node) -> Node:
    place = 1 if node.operator == "Expand" else 0
    made, shape = node.outputs[0], node.inputs[place]
    if not (cut.changes(made) or cut.told(shape)):
        return node
    probe = cut.anatomy.probe
    rank, length = len(probe.shape(made)), len(probe.integers(shape) or ())
    wanted = {}
    for axis in range(rank - length, rank):
        varies, kept = probe.varies(made, axis), cut.keep(made, axis)
        if not varies:
            wanted[axis - rank + length] = cut.size(made, axis)
        elif kept is not None and node.operator == "Expand":
            wanted[axis - rank + length] = 1  # it has its size already
    return _vector(cut, node, place, "shape", wanted)


@rewrites("Split")
def split(cut: Cut, node: Node) -> Node:
    rank = len(cut.anatomy.probe.shape(node.inputs[0]))
    axis = node.integer("axis", 0) % rank
    if cut.keep(node.inputs[0], axis) is None and not (node.input(1) and cut.told(node.inputs[1])):
        return node
    sizes = np.array([cut.size(name, axis) for name in node.outputs], dtype=np.int64)
    changed = _input(node, 1, cut.constant(node, "split", sizes))
    return replace(
        changed, attributes={key: one for key, one in node.attributes.items() if key != "num_outputs"}
    )


@rewrites("Slice")
def slice_(cut: Cut, node: Node) -> Node:
    """Places of an axis that gets shorter are counted among what stays of it."""
    data = node.inputs[0]
    probe = cut.anatomy.probe
    shape = probe.shape(data)
    places = probe.integers(node.input(3)) if node.input(3) else tuple(range(len(shape)))
    starts, ends = probe.integers(node.inputs[1]), probe.integers(node.inputs[2])
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number in range(len(probe.shape(node.inputs[1]) and probe.numbers[0].get(node.inputs[1], ()))):
        axis = int((places or ())[number] or 0) % len(shape)
        kept = cut.keep(data, axis)
        if kept is None:
            continue
        start, end = (one[number] if one is not None else None for one in (starts, ends))
        if start is None or end is None:
            raise CutImpossible(f"{node.label}: the part it takes of a shorter axis varies")
        low, high, _ = slice(start, end).indices(shape[axis])
        first[number], last[number] = int(kept[:low].sum()), int(kept[:high].sum())
    wanted = {1: first, 2: last}
    for place, what in enumerate(("starts", "ends", "axes", "steps")[: len(node.inputs) - 1], start=1):
        if node.inputs[place] and (wanted.get(place) or cut.told(node.inputs[place])):
            node = _vector(cut, node, place, what, wanted.get(place, {}))
    return node


@rewrites("Gather")
def gather(cut: Cut, node: Node) -> Node:
    data = node.inputs[0]
    shape = cut.anatomy.probe.shape(data)
    axis = node.integer("axis", 0) % len(shape)
    kept = cut.keep(data, axis)
    if kept is None:
        return node
    indices = cut.anatomy.graph.initializers[node.inputs[1]]
    indices = indices % shape[axis]
    moved = np.cumsum(kept) - 1
    return _input(node, 1, cut.constant(node, "indices", moved[indices[kept[indices]]].astype(indices.dtype)))


@rewrites("Pad")
def pad(cut: Cut, node: Node) -> Node:
    data, made = node.inputs[0], node.outputs[0]
    probe = cut.anatomy.probe
    if not cut.changes(made):
        return node
    listed = probe.integers(node.input(3)) if node.input(3) else None
    rank = len(probe.shape(data))
    places = list(range(rank)) if listed is None else [int(one or 0) % rank for one in listed]
    amounts = probe.integers(node.inputs[1]) or ()
    wanted = {}
    for number, axis in enumerate(places):
        kept = cut.keep(made, axis)
        before, after = amounts[number], amounts[number + len(places)]
        if kept is not None and before is not None and after is not None:
            wanted[number] = int(kept[:before].sum())
            wanted[number + len(places)] = int(kept[len(kept) - after :].sum())
    return _vector(cut, node, 1, "pads", wanted)


@rewrites("Resize")
def resize(cut: Cut, node: Node) -> Node:
    """Where sizes are given, those of axes that get shorter are written."""
    sizes, made = node.input(3), node.outputs[0]
    if not sizes or not (cut.changes(made) or cut.told(sizes)):
        return node
    probe = cut.anatomy.probe
    rank = len(probe.shape(made))
    axes = [axis % rank for axis in node.integers("axes") or range(rank)]
    wanted = {
        number: cut.size(made, axis) for number, axis in enumerate(axes) if not probe.varies(made, axis)
    }
    return _vector(cut, node, 3, "sizes", wanted)


@rewrites("Tile")
def tile(cut: Cut, node: Node) -> Node:
    return _vector(cut, node, 1, "repeats", {}) if cut.told(node.inputs[1]) else node


@rewrites("ReduceMean")
def mean(cut: Cut, node: Node) -> Node:
    """The mean of what stays times its share: what went counts as zeros."""
    data = node.inputs[0]
    probe = cut.anatomy.probe
    shape = probe.shape(data)
    listed = probe.integers(node.input(1)) if node.input(1) else None
    over = reduced_axes(node, None if listed is None else [int(one or 0) for one in listed], len(shape))
    share = math.prod(cut.size(data, axis) / shape[axis] for axis in over)
    if share == 1:
        return node
    factor = cut.constant(node, "share", np.array(share, dtype=probe.kinds[data]))
    made = f"{factor}.mean"
    cut.before.append(replace(node, outputs=(made,)))
    return Node(node.name and f"{node.name}.share", "Mul", "", (made, factor), node.outputs)
