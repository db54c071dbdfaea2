"""Reads the attributes of a node; graphs, sparse tensors and types among them are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compression.loading.onnx.parts import Attribute, AttributeValue, Unsupported, shown
from compression.loading.onnx.schema import ATTRIBUTE
from compression.loading.onnx.tensors import Tensors
from compression.loading.onnx.wire import Malformed, Reader, Span

MAXIMUM_ATTRIBUTES = 256
SMALL = 1024
"""Bytes or numbers of a value that is kept."""

_TYPES = {
    1: ("FLOAT", "f"), 2: ("INT", "i"), 3: ("STRING", "s"), 4: ("TENSOR", "t"), 6: ("FLOATS", "floats"),
    7: ("INTS", "ints"), 8: ("STRINGS", "strings"), 9: ("TENSORS", "tensors"),
}  # fmt: skip
_OTHER_TYPES = {
    5: "a graph", 10: "graphs", 11: "a sparse tensor", 12: "sparse tensors", 13: "a type", 14: "types",
}  # fmt: skip
_DEFAULTS: dict[str, AttributeValue] = {"f": 0.0, "i": 0, "s": b"", "floats": (), "ints": (), "strings": ()}
_NOT_VALUES = {"name", "doc_string", "type"}


def read_attributes(reader: Reader, tensors: Tensors, spans: Iterable[Span]) -> dict[str, Attribute]:
    """The attributes of a node by name. Raises Malformed, Unsupported."""
    found: dict[str, Attribute] = {}
    for span in spans:
        message = reader.message(span, ATTRIBUTE)
        name = message.get("name", "")
        if not name or len(name) > 120 or not name.isprintable():
            raise Malformed(f"it has an attribute with the name {shown(name)}")
        if name in found:
            raise Malformed(f"it has the attribute {shown(name)} twice")
        if len(found) >= MAXIMUM_ATTRIBUTES:
            raise Malformed(f"it has more than {MAXIMUM_ATTRIBUTES} attributes")
        found[name] = _attribute(reader, tensors, name, message)
    return found


def _attribute(reader: Reader, tensors: Tensors, name: str, message: dict[str, Any]) -> Attribute:
    number = message.get("type", 0)
    if "ref_attr_name" in message:
        raise Malformed(f"its attribute {shown(name)} refers to one of a function, and this is none")
    if number in _OTHER_TYPES:
        raise Unsupported(f"its attribute {shown(name)} is {_OTHER_TYPES[number]}, which is not taken in")
    if number not in _TYPES:
        raise Malformed(f"its attribute {shown(name)} has the type {number}, which ONNX does not know")
    kind, field = _TYPES[number]
    others = sorted(message.keys() - _NOT_VALUES - {field})
    if others:
        raise Malformed(f"its attribute {shown(name)} is of type {kind}, but holds {others[0]!r}")
    value = message.get(field, _DEFAULTS.get(field))
    if kind == "TENSOR":
        if value is None:
            raise Malformed(f"its attribute {shown(name)} holds no tensor")
        return Attribute(name, kind, _tensor(tensors, name, value))
    if kind == "TENSORS":
        for each in value or ():
            _tensor(tensors, name, each)
        return Attribute(name, kind, None)
    if isinstance(value, list):
        value = tuple(value) if sum(map(_size, value)) <= SMALL else None
    elif isinstance(value, bytes) and len(value) > SMALL:
        value = None
    return Attribute(name, kind, value)


def _tensor(tensors: Tensors, name: str, span: Span) -> AttributeValue:
    try:
        return tensors.read(span)
    except Malformed as error:
        raise type(error)(f"its attribute {shown(name)}: {error}", error.advice) from None


def _size(value: int | float | bytes) -> int:
    return len(value) + 1 if isinstance(value, bytes) else 1
