"""What an ONNX file says it holds, as plain data, and how a fault in it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from compression.errors import OnnxInvalid, OnnxUnsupported
from compression.loading.onnx.wire import Malformed

MAXIMUM_RANK = 8
MAXIMUM_ELEMENTS = 1 << 48

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""Element types that are taken in, by their number in the format."""
OTHER_DTYPES = {
    8: "text", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8 (e4m3fn)",
    18: "float8 (e4m3fnuz)", 19: "float8 (e5m2)", 20: "float8 (e5m2fnuz)", 21: "uint4", 22: "int4",
    23: "float4", 24: "float8 (e8m0)", 25: "uint2", 26: "int2", 27: "float6 (e2m3)",
    28: "float6 (e3m2)",
}  # fmt: skip
ITEM_SIZES = {
    "float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2, "int16": 2,
    "uint16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOATING = ("float32", "float16", "float64")

Dimension = int | str | None
"""A number, the name of a free dimension, or None for one that is not said."""


class Unsupported(Malformed):
    """Sound ONNX that is not taken in; the text says what."""

    advice = "export the model without it"


def shown(name: str) -> str:
    """A name of a stranger as a message may show it."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def checked_name(name: str) -> str:
    """A name as it is. Raises Malformed where it holds what cannot be shown."""
    if name and not name.isprintable():
        raise Malformed(f"the name {shown(name)} holds characters that cannot be shown", "rename it")
    return name


class Place:
    """Turns what is wrong inside into an error that says where: `label` in words, `pointer` inside the file.

    The name of the part may be set once it is known.
    """

    def __init__(self, file: str, label: str = "", pointer: str = "", name: str = "") -> None:
        self.file, self.label, self.pointer, self.name = file, label, pointer, name

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Malformed):
            named = f" {shown(self.name)}" if self.name else ""
            label = f"{self.label}{named}: " if self.label else ""
            refusal = OnnxUnsupported if isinstance(error, Unsupported) else OnnxInvalid
            pointer = self.file + self.pointer
            raise refusal(f"{self.file}: {label}{error}; {error.advice}.", pointer=pointer) from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor. `bytes` are those of its elements in memory. Its data lie in `file` (the path inside
    the model) from `offset` on, `length` bytes, as `storage` says: "raw" little-endian elements, or "packed"
    in a typed field of the message, where integers are varints.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    storage: Literal["raw", "packed"]
    file: str
    offset: int
    length: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * ITEM_SIZES[self.dtype]


AttributeValue = int | float | bytes | Tensor | tuple[int, ...] | tuple[float, ...] | tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Attribute:
    """A setting of a node; `type` as the format names it. `value` is None where it is large or tensors."""

    name: str
    type: str
    value: AttributeValue


@dataclass(frozen=True, slots=True)
class Node:
    """An operator at work. Inputs and outputs that are left out have empty names; the default domain is
    "" too."""

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    @property
    def constant(self) -> Tensor | None:
        """The tensor that a Constant node gives, where it gives one."""
        found = self.attributes.get("value") if self.operator == "Constant" and not self.domain else None
        return found.value if found is not None and isinstance(found.value, Tensor) else None


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output: `shape` is None where even the number of dimensions is not said."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph of a file. `inputs` are those to be fed: initializers that are listed as inputs are not among
    them. `external` are the other files that tensors lie in."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]
    external: frozenset[str]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: `opsets` by domain ("" is the default one), `producer` with its version."""

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
