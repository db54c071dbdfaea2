"""Operators that take, put together, pad or repeat parts of axes."""

from __future__ import annotations

import numpy as np

from compression.graphs.graph import Node
from compression.graphs.labels import Axis
from compression.graphs.operators.shape import slice_ranges, split_sizes
from compression.graphs.rules.table import Analysis, concatenated, known_integers, rule


@rule("Transpose")
def transpose(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    order = node.integers("perm") or tuple(reversed(range(len(axes))))
    analysis.put(node, [axes[place] for place in order])


@rule("Concat")
def concat(analysis: Analysis, node: Node) -> None:
    rank = len(analysis.shape(node.outputs[0]))
    along = node.integer("axis", 0) % rank
    made: list[Axis] = []
    for axis in range(rank):
        sides = [(analysis.of(name)[axis], analysis.shape(name)[axis]) for name in node.inputs]
        if axis == along:
            made.append(concatenated(analysis, node, sides))
        else:
            made.append(analysis.together(node, [one for one, _ in sides]))
    analysis.put(node, made)


@rule("Split")
def split(analysis: Analysis, node: Node) -> None:
    data = node.inputs[0]
    axes, shape = analysis.of(data), analysis.shape(data)
    along = node.integer("axis", 0) % len(axes)
    listed = known_integers(analysis, node, 1)
    if node.input(1) and (listed is None or None in listed):
        return analysis.freeze_all(node, "splits it by sizes that vary")
    if axes[along] is not None and analysis.probe.varies(data, along):
        return analysis.freeze_all(node, "splits an axis that holds the batch")
    known = None if listed is None else [one for one in listed if one is not None]
    first = 0
    for place, size in enumerate(split_sizes(node, shape[along], known)):
        made = list(axes)
        whole = axes[along]
        made[along] = None if whole is None else whole[first : first + size]
        first += size
        analysis.put(node, made, place)
    return None


@rule("Slice")
def slice_(analysis: Analysis, node: Node) -> None:
    data = node.inputs[0]
    shape, axes = analysis.shape(data), list(analysis.of(data))
    listed = [known_integers(analysis, node, place) for place in range(1, 5)]
    if any(node.input(place + 1) and one is None for place, one in enumerate(listed)):
        return analysis.freeze_all(node, "takes a part of it that varies")
    starts, ends, places, steps = listed
    assert starts is not None
    assert ends is not None
    if (places and None in places) or (steps and None in steps):
        return analysis.freeze_all(node, "takes a part of it that varies")
    where = list(range(len(starts))) if places is None else [int(one or 0) % len(shape) for one in places]
    for number, axis in enumerate(where):
        start, end, step = starts[number], ends[number], 1 if steps is None else int(steps[number] or 1)
        taken = range(0)
        if start is not None and end is not None:
            taken = slice_ranges(shape, [start], [end], [axis], [step])[axis]
            if taken == range(shape[axis]) and not analysis.probe.varies(data, axis):
                continue
        whole = axes[axis]
        if whole is not None and (
            start is None or end is None or step != 1 or analysis.probe.varies(data, axis)
        ):
            analysis.freeze(whole, node, "takes a part of it in steps, or one that varies")
            whole = None
        axes[axis] = None if whole is None else whole[taken.start : taken.stop]
    analysis.put(node, axes)
    return None


@rule("Gather")
def gather(analysis: Analysis, node: Node) -> None:
    """Along an axis that is cut the indices must be constants; then labels go with the elements."""
    data, indices = node.inputs[0], node.inputs[1]
    axes = analysis.of(data)
    along = node.integer("axis", 0) % len(axes)
    rank, whole = len(analysis.shape(indices)), axes[along]
    taken: list[Axis] = [None] * rank
    if whole is not None:
        known = known_integers(analysis, node, 1)
        still = not analysis.probe.varies(data, along)
        if rank == 1 and indices in analysis.graph.initializers and known is not None and still:
            taken = [whole[np.array([int(one or 0) for one in known], dtype=np.int64)]]
        else:
            analysis.freeze(whole, node, "picks elements of it")
    for place in range(len(axes)):
        if place != along:
            analysis.produce(data, place)
    analysis.put(node, [*axes[:along], *taken, *axes[along + 1 :]])


@rule("Expand", "Tile")
def repeat(analysis: Analysis, node: Node) -> None:
    """An axis that is stretched from one element may be stretched less: it gets labels of its own."""
    data, made = node.inputs[0], node.outputs[0]
    old, shape, new = analysis.of(data), analysis.shape(data), analysis.shape(made)
    axes: list[Axis] = []
    for axis, size in enumerate(new):
        place = axis - len(new) + len(old)
        before = shape[place] if place >= 0 else 1
        if before == size:
            axes.append(old[place] if place >= 0 else None)
        elif node.operator == "Tile":
            whole = old[place]
            axes.append(None if whole is None else np.tile(whole, size // before))
        else:
            axes.append(_stretched(analysis, node, axis, size))
    analysis.put(node, axes)


def _stretched(analysis: Analysis, node: Node, axis: int, size: int) -> Axis:
    made = node.outputs[0]
    if analysis.probe.varies(made, axis) or made not in analysis.probe.floating:
        return None
    return analysis.labels.new(size)


@rule("ConstantOfShape")
def constant_of_shape(analysis: Analysis, node: Node) -> None:
    shape = analysis.shape(node.outputs[0])
    analysis.put(node, [_stretched(analysis, node, axis, size) for axis, size in enumerate(shape)])


@rule("Pad")
def pad(analysis: Analysis, node: Node) -> None:
    """What is put before and after an axis has labels of its own, which nothing makes."""
    data = node.inputs[0]
    axes = list(analysis.of(data))
    amounts, listed = known_integers(analysis, node, 1), known_integers(analysis, node, 3)
    if amounts is None or (node.input(3) and (listed is None or None in listed)):
        return analysis.freeze_all(node, "pads it by amounts that vary")
    places = list(range(len(axes))) if listed is None else [int(one or 0) % len(axes) for one in listed]
    for number, axis in enumerate(places):
        before, after, whole = amounts[number], amounts[number + len(places)], axes[axis]
        if whole is None or (before == 0 and after == 0):
            continue
        if (
            before is None
            or after is None
            or min(before, after) < 0
            or node.text("mode", "constant") != "constant"
        ):
            analysis.freeze(
                whole, node, "pads it by its own elements, less than nothing, or an amount that varies"
            )
            axes[axis] = None
        else:
            axes[axis] = np.concatenate([analysis.labels.new(before), whole, analysis.labels.new(after)])
    analysis.put(node, axes)
    return None


@rule("Resize")
def resize(analysis: Analysis, node: Node) -> None:
    data, made = node.inputs[0], node.outputs[0]
    axes = list(analysis.of(data))
    for axis, (old, new) in enumerate(
        zip(analysis.probe.pairs(data), analysis.probe.pairs(made), strict=True)
    ):
        if old != new:
            analysis.freeze(axes[axis], node, "resizes it")
            axes[axis] = None
    analysis.put(node, axes)


@rule("Trilu")
def trilu(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    for axis in axes[-2:]:
        analysis.freeze(axis, node, "takes a triangle of it")
    analysis.put(node, [*axes[:-2], None, None])


@rule("Shape", "Size")
def sizes(analysis: Analysis, node: Node) -> None:
    analysis.put(node, [None] * len(analysis.shape(node.outputs[0])))
