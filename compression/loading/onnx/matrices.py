"""Which stored tensors of a graph are matrices of weights, by its nodes and shapes alone. Plain Python: the
check on a user's own machine needs nothing else.

The gateway asks this of the header of an upload, the engine of the graph that it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PASSING = ("Identity", "Transpose")
"""Operators that stand between a stored matrix and the product in some exports."""


@dataclass(frozen=True)
class Operation:
    """A node, as far as it matters here. `settings` are its attributes that are integers."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, int] = field(default_factory=dict)
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight as a matrix of the shape [out, in]; what `compression.anatomy.graph_sites.GraphSite` says of
    it."""

    name: str
    layer: int
    shape: tuple[int, int]
    kind: str
    transposed: bool
    kernel: tuple[int, ...]
    groups: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**vars(self), "shape": list(self.shape), "kernel": list(self.kernel)}


@dataclass(frozen=True)
class Matrices:
    """The matrices of a graph in the order in which they are first multiplied by. `readers` are the first
    outputs of the nodes that multiply by one, `paths` those of the nodes that a stored tensor passes
    before; `whole` says of tensors that are multiplied by, and are no matrices, why."""

    found: tuple[Matrix, ...]
    readers: Mapping[str, tuple[str, ...]]
    paths: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, str]


@dataclass(frozen=True)
class _Stored:
    """A value that is a stored tensor, maybe turned: by which nodes, and whether its axes are reversed."""

    name: str
    path: tuple[str, ...] = ()
    turned: bool = False


_Form = tuple[str, tuple[int, int], bool, tuple[int, ...], int]
"""Kind, shape, transposed, kernel, groups."""


def find_matrices(nodes: Sequence[Operation], shapes: Mapping[str, tuple[int, ...]]) -> Matrices:
    """The matrices among floating-point tensors of these shapes; `nodes` in topological order.

    A tensor that is also read in another way than as this matrix (looked up, added, multiplied by from the
    other side) is none: zeros would change what it means there.
    """
    stored = {name: _Stored(name) for name in shapes}
    forms: dict[str, set[_Form]] = {}
    readers: dict[str, list[str]] = {}
    paths: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for node in nodes:
        passed = _passed(node, stored, shapes)
        if passed is not None:
            stored[node.outputs[0]] = passed
            paths.setdefault(passed.name, []).append(node.outputs[0])
            continue
        for place, name in enumerate(node.inputs):
            if name not in stored:
                continue
            source = stored[name]
            form = _form(node, place, source, shapes[source.name])
            if isinstance(form, str):
                reasons.setdefault(source.name, form)
            elif any(other in stored for other in node.inputs[:2] if other != name):
                reasons.setdefault(source.name, f"{node.operator} multiplies two stored tensors")
            else:
                forms.setdefault(source.name, set()).add(form)
                readers.setdefault(source.name, []).append(node.outputs[0])
    return _matrices(forms, readers, paths, reasons)


def _matrices(
    forms: Mapping[str, set[_Form]],
    readers: Mapping[str, Sequence[str]],
    paths: Mapping[str, Sequence[str]],
    reasons: Mapping[str, str],
) -> Matrices:
    found: list[Matrix] = []
    whole: dict[str, str] = {}
    for name, ways in forms.items():
        if name in reasons:
            whole[name] = reasons[name]
        elif len(ways) > 1:
            whole[name] = "it is multiplied by as several different matrices"
        else:
            kind, shape, transposed, kernel, groups = next(iter(ways))
            found.append(Matrix(name, len(found), shape, kind, transposed, kernel, groups))
    names = {one.name for one in found}
    return Matrices(
        tuple(found),
        {name: tuple(values) for name, values in readers.items() if name in names},
        {name: tuple(values) for name, values in paths.items() if name in names},
        whole,
    )


def _passed(
    node: Operation, stored: Mapping[str, _Stored], shapes: Mapping[str, tuple[int, ...]]
) -> _Stored | None:
    """What a node that passes a stored tensor on gives; None for other nodes."""
    if node.operator not in PASSING or not node.inputs or node.inputs[0] not in stored:
        return None
    source = stored[node.inputs[0]]
    path = (*source.path, node.outputs[0])
    if node.operator == "Identity":
        return _Stored(source.name, path, source.turned)
    if len(shapes[source.name]) != 2 or node.permutation not in (None, (0, 1), (1, 0)):
        return None
    return _Stored(source.name, path, source.turned != (node.permutation != (0, 1)))


def _form(node: Operation, place: int, source: _Stored, shape: tuple[int, ...]) -> _Form | str:
    """What matrix a node reads at one of its inputs, or why it reads none."""
    operator = node.operator
    if operator not in MULTIPLYING:
        return f"{operator} reads it too"
    if place > 1 or (place == 0 and operator != "MatMul"):
        return f"{operator} reads it as another input than its weight"
    if operator in ("Conv", "ConvTranspose"):
        groups = node.settings.get("group", 1)
        if len(shape) < 3 or groups < 1 or shape[0] % groups:
            return f"the shape {list(shape)} is none of a convolution"
        kernel, size = shape[2:], math.prod(shape[2:])
        if operator == "Conv":
            return operator, (shape[0], shape[1] * size), False, kernel, groups
        return operator, (shape[1] * groups, shape[0] // groups * size), False, kernel, groups
    if len(shape) != 2:
        return f"{operator} multiplies by it along more than two axes"
    if operator == "Gemm" and node.settings.get("transA", 0):
        return "Gemm turns its other operand"
    # Stored as [out, in] where a Gemm turns it, or where it stands on the left.
    rows_first = place == 0 or (operator == "Gemm" and bool(node.settings.get("transB", 0)))
    transposed = rows_first == source.turned
    matrix = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    kind = "MatMul (left)" if place == 0 else operator
    return kind, matrix, transposed, (), 1
