"""The shape of one layer as far as its time depends on it, and the operator of that shape alone. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("Gemm", "MatMul")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LayerShape:
    """A layer at a batch of one. `widths` are the sizes that cutting may change: of a convolution (groups,
    input channels of a group, output channels of a group); of a product (axes that several matrices are
    stacked along, then rows, inner size, columns). `rest` is all else that its time depends on, by name,
    sorted."""

    operator: str
    widths: tuple[int, ...]
    rest: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The same as text; `from_key` reads it back."""
        return json.dumps([self.operator, list(self.widths), dict(self.rest)], separators=(",", ":"))

    @classmethod
    def from_key(cls, key: str) -> LayerShape:
        """Reads a `key`. Raises ValueError for what is none."""
        operator, widths, rest = json.loads(key)
        return cls(str(operator), tuple(int(one) for one in widths), tuple(sorted(rest.items())))

    def with_widths(self, widths: Sequence[int]) -> LayerShape:
        """The same layer with other widths."""
        return replace(self, widths=tuple(widths))

    def told(self, name: str) -> tuple[int, ...]:
        """A list of numbers of `rest`; empty where there is none."""
        text = dict(self.rest).get(name, "")
        return tuple(int(one) for one in text.split("x")) if text else ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        if self.operator in PRODUCTS:
            return math.prod(self.widths)
        groups, read, made = self.widths
        over = self.told("out" if self.operator == "Conv" else "in")
        return self.batch * groups * read * made * math.prod(self.told("kernel")) * math.prod(over)

    @property
    def batch(self) -> int:
        """How many samples a convolution is of where the network is run on one."""
        return math.prod(self.told("batch"))

    @property
    def elements(self) -> int:
        """Numbers that the layer gives."""
        if self.operator in PRODUCTS:
            *stacked, rows, _, columns = self.widths
            return math.prod(stacked) * rows * columns
        groups, _, made = self.widths
        return self.batch * groups * made * math.prod(self.told("out"))

    @property
    def held(self) -> int:
        """Numbers that the layer reads, those of its weight included."""
        if self.operator in PRODUCTS:
            *stacked, rows, inner, columns = self.widths
            return math.prod(stacked) * inner * (rows + columns)
        groups, read, made = self.widths
        weight = groups * read * made * math.prod(self.told("kernel"))
        return self.batch * groups * read * math.prod(self.told("in")) + weight

    @property
    def channels(self) -> tuple[int, ...]:
        """The widths that runtimes compute in blocks: channels read and made of a convolution, inner size and
        columns of a product."""
        if self.operator in PRODUCTS:
            return self.widths[-2:]
        groups, read, made = self.widths
        return groups * read, groups * made

    @property
    def text(self) -> str:
        """In words: operator, kernel, channels, sizes."""
        if self.operator in PRODUCTS:
            *stacked, rows, inner, columns = self.widths
            times = f", {math.prod(stacked)} times" if math.prod(stacked) > 1 else ""
            return f"{self.operator} {rows} x {inner} by {inner} x {columns}{times}"
        groups, read, made = self.widths
        sizes = "x".join(str(one) for one in self.told("in"))
        sizes += f", {self.batch} at once" if self.batch > 1 else ""
        apart = f", {groups} groups" if groups > 1 else ""
        stride = self.told("strides")
        steps = f", stride {max(stride)}" if max(stride, default=1) > 1 else ""
        kernel = "x".join(str(one) for one in self.told("kernel"))
        return f"{self.operator} {kernel}, {groups * read} to {groups * made} channels{apart}, {sizes}{steps}"


DRAWN = 4093
"""Random numbers that tensors are filled with, again and again: which are multiplied costs no time."""


def alone(shape: LayerShape, name: str, dtype: str) -> tuple[NodeProto, Arrays, Arrays]:
    """The operator of a shape alone, its inputs and its stored weights by name, drawn from a fixed seed;
    names begin with `name`, which also is the node's and its output's."""
    drawn = (np.random.default_rng(0).standard_normal(DRAWN) / 8).astype(dtype)

    def array(*sizes: int) -> NDArray[Any]:
        return np.resize(drawn, sizes)

    if shape.operator in PRODUCTS:
        return _product(shape, name, array)
    groups, read, made = shape.widths
    outer, inner = (groups * made, read) if shape.operator == "Conv" else (groups * read, made)
    inputs = {f"{name}.x": array(shape.batch, groups * read, *shape.told("in"))}
    weights = {f"{name}.w": array(outer, inner, *shape.told("kernel"))}
    if dict(shape.rest).get("bias"):
        weights[f"{name}.b"] = array(groups * made)
    known: Mapping[str, Any] = {
        what: list(shape.told(what))
        for what in ("strides", "pads", "dilations", "output_padding", "output_shape")
        if shape.told(what)
    }
    padded = dict(shape.rest).get("auto_pad")
    more = {"auto_pad": padded} if padded else {}
    node = helper.make_node(
        shape.operator, [*inputs, *weights], [name], name=name, group=groups, **known, **more
    )
    return node, inputs, weights


def _product(shape: LayerShape, name: str, array: Any) -> tuple[NodeProto, Arrays, Arrays]:
    *stacked, rows, inner, columns = shape.widths
    rest = dict(shape.rest)

    def sizes(which: str, *own: int) -> tuple[int, ...]:
        # Of every stacked axis whether the operand has it: 1 in full, 0 of size one; fewer where it has
        # fewer.
        has = rest.get(which, "")
        ahead = stacked[len(stacked) - len(has) :]
        return tuple(size if one == "1" else 1 for size, one in zip(ahead, has, strict=True)) + own

    turned = {which: rest.get(which) == "1" for which in ("transA", "transB")}
    first = (inner, rows) if turned["transA"] else (rows, inner)
    second = (columns, inner) if turned["transB"] else (inner, columns)
    arrays = {f"{name}.x": array(*sizes("left", *first)), f"{name}.w": array(*sizes("right", *second))}
    if rest.get("bias"):
        arrays[f"{name}.b"] = array(columns)
    stored = {f"{name}.{one}" for one in rest.get("stored", "")} | {f"{name}.b"}
    more: Mapping[str, Any] = {which: 1 for which, on in turned.items() if on}
    node = helper.make_node(shape.operator, list(arrays), [name], name=name, **more)
    inputs = {one: value for one, value in arrays.items() if one not in stored}
    return node, inputs, {one: value for one, value in arrays.items() if one in stored}
