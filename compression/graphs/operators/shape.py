"""Operators that move elements, make tensors, or tell of shapes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compression.graphs.errors import GraphInvalid
from compression.graphs.graph import Node
from compression.graphs.operators.table import TORCH_TYPES, Circumstances, Inputs, axis_of, operator, refuse

LARGEST = 2**31
"""Elements of a tensor that a graph may make by itself."""


@operator("Shape")
def shape(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    end = node.attributes.get("end")
    sizes = list(x[0].shape)[node.integer("start", 0) : end if isinstance(end, int) else None]
    return torch.tensor(sizes, dtype=torch.int64)


@operator("Size")
def size(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.tensor(x[0].numel(), dtype=torch.int64)


@operator("Reshape")
def reshape(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    wanted = x.integers(1) or []
    if not node.integer("allowzero", 0):
        wanted = [x[0].shape[place] if one == 0 else one for place, one in enumerate(wanted)]
    return x[0].reshape(wanted)


@operator("Flatten")
def flatten(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis = node.integer("axis", 1)
    axis = axis + x[0].ndim if axis < 0 else axis
    rows = int(np.prod(x[0].shape[:axis], dtype=np.int64))
    return x[0].reshape(rows, x[0].numel() // rows if rows else -1)


@operator("Squeeze")
def squeeze(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axes = x.integers(1)
    if axes is None:
        return x[0].squeeze()
    if any(x[0].shape[axis] != 1 for axis in axes):
        raise GraphInvalid(f"{node.label}: an axis that is to go is longer than 1")
    return x[0].squeeze(tuple(axes)) if axes else x[0]


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axes = x.integers(1) or []
    rank = x[0].ndim + len(axes)
    made = x[0]
    for axis in sorted(one % rank for one in axes):
        made = made.unsqueeze(axis)
    return made


@operator("Transpose")
def transpose(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return x[0].permute(node.integers("perm") or tuple(reversed(range(x[0].ndim))))


@operator("Concat")
def concat(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.cat(x.all(), node.integer("axis", 0))


def split_sizes(node: Node, total: int, listed: list[int] | None) -> list[int]:
    """How long the parts of a split are."""
    if listed is not None:
        return listed
    parts = len(node.outputs)
    length = -(-total // parts)
    return [min(length, total - length * place) for place in range(parts)]


@operator("Split")
def split(node: Node, x: Inputs, _: Circumstances) -> tuple[Tensor, ...]:
    axis = axis_of(node.integer("axis", 0), x[0].ndim, node)
    return tuple(torch.split(x[0], split_sizes(node, x[0].shape[axis], x.integers(1)), axis))


def slice_ranges(
    sizes: tuple[int, ...],
    starts: list[int],
    ends: list[int],
    axes: list[int] | None,
    steps: list[int] | None,
) -> dict[int, range]:
    """By axis, the indices that a Slice takes."""
    axes = list(range(len(starts))) if axes is None else [axis % len(sizes) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    return {
        axis: range(
            *slice(start, None if step < 0 and end < -sizes[axis] else end, step).indices(sizes[axis])
        )
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


@operator("Slice")
def slice_(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    made = x[0]
    ranges = slice_ranges(
        tuple(made.shape), x.integers(1) or [], x.integers(2) or [], x.integers(3), x.integers(4)
    )
    for axis, taken in ranges.items():
        if taken.step > 0:
            key = (slice(None),) * axis + (slice(taken.start, taken.stop, taken.step),)
            made = made[key]
        else:
            made = made.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=made.device))
    return made


@operator("Gather")
def gather(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis = axis_of(node.integer("axis", 0), x[0].ndim, node)
    indices = x[1].to(x[0].device, torch.int64)
    indices = torch.where(indices < 0, indices + x[0].shape[axis], indices)
    taken = x[0].index_select(axis, indices.flatten())
    return taken.reshape([*x[0].shape[:axis], *indices.shape, *x[0].shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis = axis_of(node.integer("axis", 0), x[0].ndim, node)
    indices = torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1]).to(torch.int64)
    # an index reaches as far as itself, not as the data, on the other axes
    return torch.gather(x[0], axis, indices)


@operator("GatherND")
def gather_nd(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    if node.integer("batch_dims", 0):
        raise refuse(node, "batch_dims other than 0")
    return x[0][tuple(x[1].to(torch.int64).unbind(-1))]


@operator("ScatterND")
def scatter_nd(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    if node.text("reduction", "none") != "none":
        raise refuse(node, "a reduction")
    return x[0].index_put(tuple(x[1].to(torch.int64).unbind(-1)), x[2])


@operator("ScatterElements")
def scatter_elements(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    if node.text("reduction", "none") != "none":
        raise refuse(node, "a reduction")
    axis = axis_of(node.integer("axis", 0), x[0].ndim, node)
    indices = torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1]).to(torch.int64)
    return x[0].scatter(axis, indices, x[2])


@operator("Expand")
def expand(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return x[0].expand(
        _bounded(node, list(np.broadcast_shapes(tuple(x[0].shape), tuple(x.integers(1) or []))))
    )


@operator("Tile")
def tile(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    repeats = x.integers(1) or []
    _bounded(node, [one * many for one, many in zip(x[0].shape, repeats, strict=True)])
    return x[0].repeat(repeats) if repeats else x[0]


@operator("Pad")
def pad(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    rank = x[0].ndim
    amounts, axes = x.integers(1) or [], x.integers(3)
    places = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(places):
        before[axis], after[axis] = amounts[place], amounts[place + len(places)]
    value = x.optional(2)
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.text("mode", "constant")
    ]
    if mode == "constant":
        pairs = [amount for axis in reversed(range(rank)) for amount in (before[axis], after[axis])]
        return F.pad(x[0], pairs, value=0.0 if value is None else value.item())
    moved = [axis for axis in range(rank) if before[axis] or after[axis]]
    if not moved:
        return x[0]
    if len(moved) > 3 or moved[0] < rank - len(moved):
        raise refuse(node, f"the mode {mode} on other than the last three axes")
    pairs = [amount for axis in reversed(moved) for amount in (before[axis], after[axis])]
    flat = x[0].reshape(1, -1, *(x[0].shape[rank - len(moved) :]))
    made = F.pad(flat, pairs, mode=mode)
    return made.reshape(*x[0].shape[: rank - len(moved)], *made.shape[2:])


@operator("ConstantOfShape")
def constant_of_shape(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    value = node.attributes.get("value")
    filled = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else torch.zeros(1)
    return filled.reshape(()).expand(_bounded(node, x.integers(0) or [])).clone()


def _bounded(node: Node, sizes: list[int]) -> list[int]:
    """GraphInvalid for a shape that no network needs."""
    if float(np.prod([float(one) for one in sizes])) > LARGEST or any(one < 0 for one in sizes):
        raise GraphInvalid(f"{node.label}: makes a tensor of the shape {sizes}")
    return sizes


@operator("Range")
def range_(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    start, limit, delta = (x[place].item() for place in range(3))
    if delta == 0 or abs((limit - start) / delta) > LARGEST:
        raise GraphInvalid(f"{node.label}: makes too long a range")
    return torch.arange(start, limit, delta, dtype=x[0].dtype, device=x[0].device)


@operator("Trilu")
def trilu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    diagonal = (x.integers(1) or [0])[0]
    return torch.triu(x[0], diagonal) if node.integer("upper", 1) else torch.tril(x[0], diagonal)


@operator("OneHot")
def one_hot(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    depth = int(x[1].item())
    indices = x[0].to(torch.int64)
    indices = torch.where(indices < 0, indices + depth, indices)
    _bounded(node, [indices.numel(), depth])
    off, on = x[2].unbind(0)
    hit = indices.unsqueeze(-1) == torch.arange(depth, device=indices.device)
    axis = node.integer("axis", -1)
    return torch.where(hit, on, off).movedim(-1, axis)


@operator("EyeLike")
def eye_like(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    kind = TORCH_TYPES.get(node.integer("dtype", 0), x[0].dtype)
    ones = torch.ones(tuple(x[0].shape), dtype=kind, device=x[0].device)
    shift = node.integer("k", 0)
    return torch.triu(torch.tril(ones, shift), shift)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    side = node.integer("blocksize", 1)
    batch, channels, height, width = x[0].shape
    if node.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x[0], side)
    parts = x[0].reshape(batch, side, side, channels // side**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // side**2, height * side, width * side)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    side = node.integer("blocksize", 1)
    batch, channels, height, width = x[0].shape
    parts = x[0].reshape(batch, channels, height // side, side, width // side, side)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * side**2, height // side, width // side)
