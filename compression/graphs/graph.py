"""A network as a graph of ONNX operators, read from a ModelProto and written back to one.

Names and order of nodes stay as they were. `Constant` nodes become initializers (they are initializers in
another notation), functions of the model's own are inlined, vectors that unrelated nodes share get
copies. What exporters leave besides the network (stack traces and paths in `metadata_props` and
`doc_string`, shapes of intermediate values) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from compression.graphs.errors import GraphInvalid, OperatorUnknown

OPSETS = range(13, 23)
MULTIPLYING = {"Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
DOMAINS = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}

Array = NDArray[Any]
Attribute = int | float | str | bytes | Array | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """One operator of the graph. An input or output that is left out is the empty string."""

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Operator and name, for messages."""
        return f"{self.operator} {self.name!r}" if self.name else f"{self.operator} of {self.value!r}"

    @property
    def value(self) -> str:
        """The first output that is not left out."""
        return next(name for name in self.outputs if name)

    def input(self, place: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise GraphInvalid(f"{self.label}: attribute {name!r} is not a number")
        return value

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return int(self.number(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers; None where it is left out."""
        value = self.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
            raise GraphInvalid(f"{self.label}: attribute {name!r} is not a list of integers")
        return tuple(int(item) for item in value)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise GraphInvalid(f"{self.label}: attribute {name!r} is not a text")
        return value

    def with_(self, **attributes: Attribute) -> Node:
        """The same node with these attributes changed."""
        return replace(self, attributes={**self.attributes, **attributes})


@dataclass(frozen=True)
class Value:
    """An input or output of the network: element type (a TensorProto.DataType) and sizes; a size that varies
    is its name, or None."""

    name: str
    dtype: int
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, initializers by name, inputs and outputs, versions of operator sets by
    domain."""

    nodes: tuple[Node, ...]
    initializers: Mapping[str, Array]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opsets: Mapping[str, int]
    name: str = "graph"
    ir_version: int = 10

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.opsets[""]

    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """By value: the nodes that read it, each with the place of the input."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for place, name in enumerate(node.inputs):
                if name:
                    found.setdefault(name, []).append((node, place))
        return found

    def without_dead_parts(self) -> Graph:
        """The graph without nodes and initializers that no output needs."""
        needed = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(output in needed for output in node.outputs):
                kept.append(node)
                needed.update(name for name in node.inputs if name)
        initializers = {name: array for name, array in self.initializers.items() if name in needed}
        return replace(self, nodes=tuple(reversed(kept)), initializers=initializers)


def read_graph(source: ModelProto | Path | str) -> Graph:
    """The graph of a model. External data are taken in if `source` is a path.

    GraphInvalid for a malformed graph or an operator set outside 13 to 22; OperatorUnknown for what no graph
    here has (nested graphs, sparse tensors, other domains).
    """
    model = source if isinstance(source, ModelProto) else onnx.load(str(source))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = _opsets(model)
    proto = model.graph
    if proto.sparse_initializer:
        raise OperatorUnknown("the graph has sparse initializers, which are not read here")
    initializers = {one.name: _array(one) for one in proto.initializer}
    nodes: list[Node] = []
    for one in proto.node:
        node = _node(one, len(nodes))
        if node.operator == "Constant" and not node.domain:
            initializers[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    inputs = tuple(_value(one) for one in proto.input if one.name not in initializers)
    outputs = tuple(_value(one) for one in proto.output)
    graph = Graph(
        tuple(nodes), initializers, inputs, outputs, opsets, proto.name or "graph", model.ir_version
    )
    return untied(replace(graph, nodes=_sorted(graph)))


def untied(graph: Graph) -> Graph:
    """The graph with a copy, for each node that reads it, of every float vector and of every float tensor
    whose elements are all equal.

    Exporters store equal tensors once: biases that are still zero, say, of layers that have nothing to do
    with each other. They would be cut and trained as one. Where nodes multiply by the same matrix, a part
    of the network is used several times, and everything stays as it is.
    """
    readers = graph.consumers()
    shared = {
        name: readers[name]
        for name, array in graph.initializers.items()
        if len(readers.get(name, ())) > 1 and array.dtype.kind not in "iub" and array.size > 1
    }
    parted = {name: places for name, places in shared.items() if _parts(graph.initializers[name])}
    if any(node.operator in MULTIPLYING for name in set(shared) - set(parted) for node, _ in shared[name]):
        return graph
    names: dict[tuple[str, int], str] = {}
    arrays = dict(graph.initializers)
    taken = set(arrays) | {value.name for value in graph.inputs} | set(graph.producers())
    for name, places in parted.items():
        for number, (node, place) in enumerate(places[1:], start=2):
            copy = f"{name}.{number}"
            while copy in taken:
                copy += "_"
            taken.add(copy)
            arrays[copy] = graph.initializers[name]
            names[node.value, place] = copy
    nodes = tuple(_renamed(node, names) for node in graph.nodes)
    return replace(graph, nodes=nodes, initializers=arrays)


def _parts(array: Array) -> bool:
    return sum(size > 1 for size in array.shape) <= 1 or bool((array == array.flat[0]).all())


def _renamed(node: Node, names: Mapping[tuple[str, int], str]) -> Node:
    inputs = tuple(names.get((node.value, place), name) for place, name in enumerate(node.inputs))
    return node if inputs == node.inputs else replace(node, inputs=inputs)


def _opsets(model: ModelProto) -> dict[str, int]:
    opsets: dict[str, int] = {}
    used = {node.domain for node in model.graph.node}
    for one in model.opset_import:
        if one.domain not in used and one.domain not in {"", "ai.onnx"}:
            continue
        if one.domain not in DOMAINS:
            raise OperatorUnknown(
                f"the graph uses operators of the domain {one.domain!r}, which are not run here"
            )
        opsets[DOMAINS[one.domain]] = one.version
    if opsets.get("") not in OPSETS:
        raise GraphInvalid(
            f"the graph is of operator set {opsets.get('')}; {OPSETS[0]} to {OPSETS[-1]} are read here:"
            " convert it with onnx.version_converter"
        )
    return opsets


def _array(tensor: TensorProto) -> Array:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise GraphInvalid(
            f"initializer {tensor.name!r} has its data in another file; load the model by its path"
        )
    return np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))


def _node(proto: NodeProto, place: int) -> Node:
    if proto.domain not in DOMAINS:
        raise OperatorUnknown(
            f"{proto.op_type} {proto.name!r}: operators of the domain {proto.domain!r} are not run here"
        )
    outputs = tuple(proto.output)
    if not any(outputs):
        raise GraphInvalid(f"{proto.op_type} {proto.name!r} (node {place}) has no output")
    attributes = {one.name: _attribute(one, proto) for one in proto.attribute}
    return Node(proto.name, proto.op_type, DOMAINS[proto.domain], tuple(proto.input), outputs, attributes)


def _attribute(proto: AttributeProto, node: NodeProto) -> Attribute:
    if proto.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS}:
        raise OperatorUnknown(f"{node.op_type} {node.name!r} holds a nested graph, which is not run here")
    value = helper.get_attribute_value(proto)
    if isinstance(value, TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        items = [
            item.decode("utf-8", errors="replace") if isinstance(item, bytes) else item for item in value
        ]
        if all(isinstance(item, int | float | str) for item in items):
            return tuple(items)
    raise OperatorUnknown(
        f"{node.op_type} {node.name!r}: attribute {proto.name!r} is of a kind not read here"
    )


def _constant(node: Node) -> Array:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32),
                        ("value_int", np.int64), ("value_ints", np.int64)):  # fmt: skip
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype=dtype)
    value = node.attributes.get("value")
    if isinstance(value, np.ndarray):
        return value
    raise OperatorUnknown(f"{node.label}: constants that are texts or sparse are not read here")


def _value(proto: ValueInfoProto) -> Value:
    kind = proto.type
    if not kind.HasField("tensor_type"):
        raise OperatorUnknown(
            f"{proto.name!r} is not a tensor; inputs and outputs of a network are tensors here"
        )
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return Value(proto.name, tensor.elem_type, None)
    shape = tuple(
        one.dim_value if one.HasField("dim_value") else (one.dim_param or None) for one in tensor.shape.dim
    )
    return Value(proto.name, tensor.elem_type, shape)


def _sorted(graph: Graph) -> tuple[Node, ...]:
    """The nodes in topological order: as they are if they are in order, as ONNX asks."""
    known = {value.name for value in graph.inputs} | set(graph.initializers) | {""}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise GraphInvalid(f"{node.label} reads {missing[0]!r}, which no node before it computes")
        twice = [name for name in node.outputs if name and name in known]
        if twice:
            raise GraphInvalid(f"{node.label} computes {twice[0]!r}, which there is already")
        known.update(node.outputs)
    for value in graph.outputs:
        if value.name not in known:
            raise GraphInvalid(f"the output {value.name!r} is computed by no node")
    return graph.nodes


def write_graph(graph: Graph) -> ModelProto:
    """The graph as a ModelProto, without any metadata. GraphInvalid for a value that ONNX cannot hold."""
    proto = GraphProto(name=graph.name)
    for node in graph.nodes:
        made = helper.make_node(node.operator, list(node.inputs), list(node.outputs), name=node.name)
        if node.domain:
            made.domain = node.domain
        made.attribute.extend(_attribute_proto(name, value) for name, value in node.attributes.items())
        proto.node.append(made)
    for name, array in graph.initializers.items():
        proto.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
    proto.input.extend(_value_proto(value) for value in graph.inputs)
    proto.output.extend(_value_proto(value) for value in graph.outputs)
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    model = helper.make_model(proto, opset_imports=opsets, producer_name="secateur")
    model.ir_version = graph.ir_version
    return model


def _attribute_proto(name: str, value: Attribute) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if isinstance(value, tuple):
        items: Sequence[Any] = list(value)
        if not items:
            return helper.make_attribute(name, items, attr_type=AttributeProto.INTS)
        return helper.make_attribute(name, items)
    return helper.make_attribute(name, value)


def _value_proto(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, value.dtype, value.shape)
