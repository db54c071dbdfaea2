"""Reshaping: axes are merged and split, and labels go with their elements.

The axes before and after fall into blocks with the same number of elements in both samples. In a block
one axis that is cut may become several: then whole rows of one of them are the units, and which axis that
is, is a choice (heads or the width of a head; the groups of a channel shuffle or the channels of a
group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compression.graphs.graph import Node
from compression.graphs.labels import Axis
from compression.graphs.rules.table import LARGEST, Analysis, rule

Pair = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Axes of the old and of the new shape that hold the same elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def blocks(before: Sequence[Pair], after: Sequence[Pair]) -> list[Block] | None:
    """The smallest blocks of axes (each with its two sizes) that hold the same elements; axes of one
    element are in none. None if sizes do not match."""
    old = [axis for axis, size in enumerate(before) if size != (1, 1)]
    new = [axis for axis, size in enumerate(after) if size != (1, 1)]
    found: list[Block] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, last = i, j
        left = right = (1, 1)
        while True:
            if left == right and i > first and j > last:
                break
            if left[0] <= right[0] and i < len(old):
                left = (left[0] * before[old[i]][0], left[1] * before[old[i]][1])
                i += 1
            elif j < len(new):
                right = (right[0] * after[new[j]][0], right[1] * after[new[j]][1])
                j += 1
            elif i < len(old):
                left = (left[0] * before[old[i]][0], left[1] * before[old[i]][1])
                i += 1
            else:
                return None
        found.append(Block(tuple(old[first:i]), tuple(new[last:j])))
    return found


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(analysis: Analysis, node: Node) -> None:
    data, made = node.inputs[0], node.outputs[0]
    before, after = analysis.probe.pairs(data), analysis.probe.pairs(made)
    found = blocks(before, after) if 0 not in {size for pair in before for size in pair} else None
    if found is None:
        return analysis.freeze_all(node, "moves its elements in a way that is not followed")
    axes: list[Axis] = [None] * len(after)
    for block in found:
        _through(analysis, node, block, axes)
    analysis.put(node, axes)
    return None


def _through(analysis: Analysis, node: Node, block: Block, axes: list[Axis]) -> None:
    """Take the labels of one block over to its new axes."""
    old, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    labelled = [axis for axis in block.before if old[axis] is not None]
    if not labelled:
        return
    sizes = [analysis.shape(node.outputs[0])[axis] for axis in block.after]
    if int(np.prod(sizes)) > LARGEST:
        for axis in labelled:
            analysis.freeze(old[axis], node, "makes too long an axis of it")
        return
    one = labelled[0]
    if len(labelled) > 1:
        one = labelled[analysis.choose(node, len(labelled))]
        for axis in labelled:
            if axis != one:
                analysis.freeze(old[axis], node, "merges it with another axis that is cut")
    kept = old[one]
    assert kept is not None
    if len(labelled) > 1:
        analysis.decide(node, len(labelled), kept)
    around = [kept.size if axis == one else 1 for axis in block.before]
    grid = np.broadcast_to(kept.reshape(around), [shape[axis] for axis in block.before]).reshape(sizes)
    if len(sizes) == 1:
        axes[block.after[0]] = np.ascontiguousarray(grid)
        return
    rows = [np.moveaxis(grid, place, 0).reshape(sizes[place], -1) for place in range(len(sizes))]
    for place, row in enumerate(rows):
        if (row == row[:, :1]).all():
            axes[block.after[place]] = row[:, 0].copy()
            return
    ways = [
        place for place, axis in enumerate(block.after) if not analysis.probe.varies(node.outputs[0], axis)
    ]
    if not ways:
        analysis.freeze(kept, node, "splits it by sizes that vary")
        return
    way = ways[analysis.choose(node, len(ways))]
    analysis.labels.join(rows[way][:, :1], rows[way])
    axes[block.after[way]] = rows[way][:, 0].copy()
    if len(ways) > 1:
        analysis.decide(node, len(ways), rows[way][:, 0])


@rule("DepthToSpace")
def depth_to_space(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    side = node.integer("blocksize", 1) ** 2
    for axis in axes[2:]:
        analysis.freeze(axis, node, "mixes it with channels")
    channels = axes[1]
    if channels is not None:
        rows = (
            channels.reshape(side, -1).T if node.text("mode", "DCR") == "DCR" else channels.reshape(-1, side)
        )
        analysis.labels.join(rows[:, :1], rows)
        channels = rows[:, 0].copy()
    analysis.put(node, [axes[0], channels, None, None])


@rule("SpaceToDepth")
def space_to_depth(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    for axis in axes[2:]:
        analysis.freeze(axis, node, "mixes it with channels")
    side = node.integer("blocksize", 1) ** 2
    channels = None if axes[1] is None else np.tile(axes[1], side)
    analysis.put(node, [axes[0], channels, None, None])


@rule("Col2Im")
def col2im(analysis: Analysis, node: Node) -> None:
    """Blocks of places are laid over each other, channel by channel: all of a channel's go as one."""
    axes = analysis.of(node.inputs[0])
    analysis.freeze(axes[2], node, "lays it over an image")
    channels = axes[1]
    if channels is not None:
        rows = channels.reshape(analysis.shape(node.outputs[0])[1], -1)
        analysis.labels.join(rows[:, :1], rows)
        channels = rows[:, 0].copy()
    analysis.put(node, [axes[0], channels, None, None])
