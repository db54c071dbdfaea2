"""Reductions over axes, and the places of extremes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep, dtype=x.dtype),
}


def reduced_axes(node: Node, axes: list[int] | None, rank: int) -> list[int]:
    """The axes that a reduction goes over, counted from the front; `axes` is its input of axes, if it has
    one."""
    listed = node.integers("axes")
    found = list(listed) if listed is not None else (axes or [])
    if not found and not node.integer("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({axis % rank for axis in found})


def _reduce(
    function: Callable[[Tensor, list[int], bool], Tensor], node: Node, x: Inputs, _: Circumstances
) -> Tensor:
    axes = reduced_axes(node, x.integers(1), x[0].ndim)
    return function(x[0], axes, bool(node.integer("keepdims", 1))) if axes else x[0]


for _name, _function in REDUCTIONS.items():
    operator(_name)(functools.partial(_reduce, _function))


@operator("ArgMax", "ArgMin")
def extreme_place(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    find = torch.argmax if node.operator == "ArgMax" else torch.argmin
    if node.integer("select_last_index", 0):
        return x[0].shape[axis] - 1 - find(x[0].flip(axis), axis, keep)
    return find(x[0], axis, keep)


@operator("TopK")
def top_k(node: Node, x: Inputs, _: Circumstances) -> tuple[Tensor, ...]:
    count = (x.integers(1) or [1])[0]
    found = torch.topk(
        x[0],
        count,
        node.integer("axis", -1),
        bool(node.integer("largest", 1)),
        bool(node.integer("sorted", 1)),
    )
    return found.values, found.indices


@operator("CumSum")
def cumulative_sum(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis = (x.integers(1) or [0])[0]
    data = x[0].flip(axis) if node.integer("reverse", 0) else x[0]
    made = data.cumsum(axis, dtype=data.dtype)
    if node.integer("exclusive", 0):
        made = made - data
    return made.flip(axis) if node.integer("reverse", 0) else made
