"""Reads the graph of an ONNX file: inputs, outputs, nodes, initializers. No weight is read.

Bounded: below 100,000 nodes and as many tensors, names of at most 1,024 bytes, and the budget of the reader.
Graphs inside of nodes, sparse and quantised tensors are refused, so nothing nests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

from compression.loading.onnx.attributes import read_attributes
from compression.loading.onnx.header import domain_of
from compression.loading.onnx.operators import CONTROL_FLOW
from compression.loading.onnx.parts import (
    MAXIMUM_ELEMENTS,
    MAXIMUM_RANK,
    Dimension,
    Graph,
    Node,
    Place,
    Tensor,
    Unsupported,
    Value,
    checked_name,
    shown,
)
from compression.loading.onnx.schema import DIMENSION, GRAPH, NODE, SHAPE, TENSOR_TYPE, TYPE, VALUE
from compression.loading.onnx.tensors import Tensors, element_type
from compression.loading.onnx.wire import LENGTH, Malformed, Reader, Span

MAXIMUM_NODES = 100_000
MAXIMUM_INITIALIZERS = 100_000
MAXIMUM_ENDS = 256
"""Inputs, and outputs, of the graph that are no initializers."""
MAXIMUM_PARTS = 300_000
"""Parts of the graph of any other kind."""
MAXIMUM_EDGES = 1_000_000
MAXIMUM_OPERATORS = 500

_MOST = {"node": MAXIMUM_NODES, "initializer": MAXIMUM_INITIALIZERS}
_PARTS = {
    "quantization_annotation": ("it is annotated as quantised", "export the model in floating point"),
    "sparse_initializer": ("it has sparse initializers", "store them as dense ones"),
}


def read_graph(reader: Reader, span: Span, file: str, sizes: Mapping[str, int]) -> Graph:
    """The graph that lies at `span`. `sizes` are the bytes of the other files of the model by path.

    Its parts are checked each by itself; `checks` says whether they fit together. Raises OnnxInvalid,
    OnnxUnsupported.
    """
    with Place(file, "graph", "/graph"):
        parts = _parts(reader, span)
    tensors = Tensors(reader, file, sizes)
    initializers = _initializers(reader, tensors, parts, file)
    inputs = _values(reader, parts, "input", file, len(initializers))
    outputs = _values(reader, parts, "output", file, 0)
    # Of values inside the graph nothing is believed; what is said of stored ones must be true.
    described = _values(reader, parts, "value_info", file, MAXIMUM_PARTS, initializers)
    _agree(file, initializers, {**described, **inputs})
    nodes = _nodes(reader, tensors, parts.get("node", []), file)
    fed = tuple(value for name, value in inputs.items() if name not in initializers)
    if len(fed) > MAXIMUM_ENDS:
        with Place(file, "graph", "/graph/input"):
            raise Unsupported(f"it has {len(fed):,} inputs, more than the {MAXIMUM_ENDS} allowed")
    return Graph(fed, tuple(outputs.values()), nodes, initializers, frozenset(tensors.external))


def _parts(reader: Reader, span: Span) -> dict[str, list[Span]]:
    """The places of the parts of a graph by their kind, counted before any is read."""
    found: dict[str, list[Span]] = {}
    for number, wire, value in reader.fields(span):
        field = GRAPH.get(number)
        if field is None:
            raise Malformed(f"holds the field {number}, which a graph does not have")
        if wire != LENGTH or not isinstance(value, Span):
            raise Malformed(f"{field.name!r} should be {field.kind.value}, but has the wire type {wire}")
        if field.name in _PARTS:
            raise Unsupported(*_PARTS[field.name])
        places = found.setdefault(field.name, [])
        places.append(value)
        if len(places) > 1 and not field.repeated:
            raise Malformed(f"holds {field.name!r} twice")
        most = _MOST.get(field.name, MAXIMUM_PARTS)
        if len(places) >= most:
            raise Unsupported(
                f"it has {most:,} parts of the kind {field.name!r} or more", "export a smaller graph"
            )
    return found


def _initializers(
    reader: Reader, tensors: Tensors, parts: Mapping[str, list[Span]], file: str
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, span in enumerate(parts.get("initializer", [])):
        with Place(file, f"initializer number {index}", f"/graph/initializer/{index}") as place:
            place.name = checked_name(tensors.name_of(span))
            tensor = tensors.read(span)
            if not tensor.name:
                raise Malformed("it has no name")
            if tensor.name in found:
                raise Malformed("another initializer has the same name")
            found[tensor.name] = tensor
    return found


def _values(
    reader: Reader,
    parts: Mapping[str, list[Span]],
    kind: str,
    file: str,
    more: int,
    only: Container[str] | None = None,
) -> dict[str, Value]:
    """The inputs, outputs or described values by name; so many `more` than MAXIMUM_ENDS are allowed. Types
    are
    read of those in `only` (None: all)."""
    spans = parts.get(kind, [])
    found: dict[str, Value] = {}
    names: set[str] = set()
    with Place(file, "graph", f"/graph/{kind}"):
        if len(spans) > MAXIMUM_ENDS + more:
            raise Unsupported(f"it has {len(spans):,} parts of the kind {kind!r}, more than are allowed")
    for index, span in enumerate(spans):
        with Place(file, f"{kind} number {index}", f"/graph/{kind}/{index}") as place:
            message = reader.message(span, VALUE)
            place.name = checked_name(message.get("name", ""))
            if not place.name:
                raise Malformed("it has no name")
            if place.name in names:
                raise Malformed("another has the same name")
            names.add(place.name)
            if only is not None and (place.name not in only or "type" not in message):
                continue
            if "type" not in message:
                raise Malformed("it has no type")
            found[place.name] = _value(reader, place.name, message["type"])
    return found


def _value(reader: Reader, name: str, span: Span) -> Value:
    message = reader.message(span, TYPE)
    others = sorted(message.keys() - {"tensor_type", "denotation"})
    if others:
        raise Unsupported(
            f"its type is no tensor ({others[0]})", "export the model so that it takes and gives tensors"
        )
    if "tensor_type" not in message:
        raise Malformed("its type says nothing")
    tensor = reader.message(message["tensor_type"], TENSOR_TYPE)
    dtype = element_type(tensor.get("elem_type", 0))
    if "shape" not in tensor:
        return Value(name, dtype, None)
    spans = reader.message(tensor["shape"], SHAPE).get("dim", [])
    if len(spans) > MAXIMUM_RANK:
        raise Unsupported(f"it has {len(spans):,} dimensions, more than the {MAXIMUM_RANK} allowed")
    return Value(name, dtype, tuple(_dimension(reader.message(each, DIMENSION)) for each in spans))


def _dimension(message: dict[str, Any]) -> Dimension:
    if "dim_value" in message and "dim_param" in message:
        raise Malformed("a dimension has both a number and a name")
    if "dim_value" in message:
        size: int = message["dim_value"]
        if size < 0 or size > MAXIMUM_ELEMENTS:
            raise Malformed(
                f"a dimension is {size}, which cannot be",
                "give free dimensions a name (dim_param) and no number",
            )
        return size
    return checked_name(message.get("dim_param", ""))[:120] or None


def _agree(file: str, initializers: Mapping[str, Tensor], described: Mapping[str, Value]) -> None:
    """Raises OnnxInvalid where an initializer has another type or shape than is said of it elsewhere."""
    for name, value in described.items():
        tensor = initializers.get(name)
        if tensor is None:
            continue
        with Place(file, "initializer", "/graph/initializer", name):
            if tensor.dtype != value.dtype:
                raise Malformed(f"it is {tensor.dtype}, but described as {value.dtype}")
            if value.shape is None:
                continue
            differ = [
                a for a, b in zip(tensor.dims, value.shape, strict=False) if isinstance(b, int) and a != b
            ]
            if len(tensor.dims) != len(value.shape) or differ:
                raise Malformed(
                    f"its dimensions are {list(tensor.dims)}, but described as {list(value.shape)}"
                )


def _nodes(reader: Reader, tensors: Tensors, spans: list[Span], file: str) -> tuple[Node, ...]:
    nodes = []
    edges = 0
    kinds: Counter[tuple[str, str]] = Counter()
    for index, span in enumerate(spans):
        with Place(file, f"node number {index}", f"/graph/node/{index}") as place:
            message = reader.message(span, NODE)
            place.name = checked_name(message.get("name", ""))
            node = _node(reader, tensors, message, place)
            edges += len(node.inputs) + len(node.outputs)
            if edges > MAXIMUM_EDGES:
                raise Unsupported(f"the nodes up to here have more than {MAXIMUM_EDGES:,} inputs and outputs")
            kinds[node.domain, node.operator] += 1
            if len(kinds) > MAXIMUM_OPERATORS:
                raise Unsupported(
                    f"the nodes up to here have more than {MAXIMUM_OPERATORS} different operators"
                )
        nodes.append(node)
    return tuple(nodes)


def _node(reader: Reader, tensors: Tensors, message: dict[str, Any], place: Place) -> Node:
    operator = message.get("op_type", "")
    if not operator.isidentifier() or not operator.isascii() or len(operator) > 120:
        raise Malformed(f"its operator is {shown(operator)}, which is no name of an operator")
    place.label = f"{place.label} ({operator})"
    if operator in CONTROL_FLOW:
        raise Unsupported(
            f"{operator} holds a graph of its own, which is not taken in",
            "export the model without it, for example by tracing it with one input",
        )
    for part, what in (
        ("overload", "an overload of a function"),
        ("device_configurations", "a layout of devices"),
    ):
        if part in message:
            raise Unsupported(f"it names {what}")
    return Node(
        place.name,
        operator,
        domain_of(message),
        tuple(checked_name(name) for name in message.get("input", ())),
        tuple(checked_name(name) for name in message.get("output", ())),
        read_attributes(reader, tensors, message.get("attribute", ())),
    )
