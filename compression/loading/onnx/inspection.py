"""What a graph is made of, as data: the inspection of a model of the format `onnx`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compression.loading.onnx.checks import constants
from compression.loading.onnx.matrices import Operation, find_matrices
from compression.loading.onnx.operators import is_known
from compression.loading.onnx.parts import FLOATING, Graph, Header, Node, Place, Tensor, Unsupported, Value

SINGLE = ("unstructured", "n:m", "block")
EXAMPLES = 3
"""Nodes that are named for each unknown operator."""
_BUFFERS = {"BatchNormalization": (3, 4)}
"""Inputs that hold what was measured of the training data, not parameters."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a graph: elements of the floating-point tensors that nodes read, each tensor once,
    without the running means and variances of norms. `by_operator` counts each tensor for the first
    operator that reads it; `dtype` is that of most parameters."""

    parameters: int
    by_operator: dict[str, int]
    dtype: str


def weigh(graph: Graph, file: str) -> Weights:
    """The parameters of a graph. Raises OnnxUnsupported where it has none."""
    count: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for operator, tensor in _read_tensors(graph):
        count[operator] += tensor.elements
        dtypes[tensor.dtype] += tensor.elements
    if not sum(count.values()):
        with Place(file, "graph", "/graph"):
            raise Unsupported(
                "no node reads a weight in float32, float16 or float64, so there is nothing to prune",
                "export the model in floating point, with its weights",
            )
    return Weights(sum(count.values()), dict(count.most_common()), dtypes.most_common(1)[0][0])


def _read_tensors(graph: Graph) -> Iterator[tuple[str, Tensor]]:
    left = {name: tensor for name, tensor in constants(graph).items() if tensor.dtype in FLOATING}
    for node in graph.nodes:
        for position, name in enumerate(node.inputs):
            tensor = left.pop(name, None)
            if tensor is not None and position not in _BUFFERS.get(node.operator, ()):
                yield node.operator, tensor


def describe(header: Header, graph: Graph, weights: Weights) -> dict[str, Any]:
    """The inspection of a graph, as JSON data."""
    operators: Counter[tuple[str, str]] = Counter((node.domain, node.operator) for node in graph.nodes)
    counts = {_full(*key): count for key, count in operators.most_common()}
    stored = constants(graph).values()
    unknown = _unknown(graph, operators)
    sites = weight_sites(graph)
    return {
        "kind": "graph",
        "opset": header.opsets[""],
        "opsets": {domain or "ai.onnx": version for domain, version in header.opsets.items()},
        "ir_version": header.ir_version,
        "producer": header.producer,
        "inputs": [_value(value) for value in graph.inputs],
        "outputs": [_value(value) for value in graph.outputs],
        "dynamic_batch": all(_free_first(value) for value in (*graph.inputs, *graph.outputs)),
        "nodes": len(graph.nodes),
        "operators": counts,
        "unknown_operators": unknown,
        "parameters": weights.parameters,
        "parameters_by_operator": weights.by_operator,
        "tensors": len(stored),
        "tensor_bytes": sum(tensor.bytes for tensor in stored),
        "granularities": [] if unknown else ["channel", *(SINGLE if sites else ())],
        "sites": sites,
    }


def weight_sites(graph: Graph) -> list[dict[str, Any]]:
    """The matrices of single weights, as JSON data."""
    shapes = {
        name: tensor.dims
        for name, tensor in constants(graph).items()
        if tensor.dtype in FLOATING and tensor.dims
    }
    nodes = [_operation(node) for node in graph.nodes if node.constant is None]
    return [one.to_json() for one in find_matrices(nodes, shapes).found]


def _operation(node: Node) -> Operation:
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    permutation = values.get("perm")
    return Operation(
        f"{node.domain}.{node.operator}" if node.domain else node.operator,
        node.inputs,
        node.outputs,
        {name: value for name, value in values.items() if isinstance(value, int)},
        tuple(map(int, permutation)) if isinstance(permutation, tuple) else None,
    )


def image_of(graph: Graph) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that a graph takes; None where it takes something else, or
    images of any size."""
    if len(graph.inputs) != 1:
        return None
    value = graph.inputs[0]
    if value.dtype not in FLOATING or value.shape is None or len(value.shape) != 4:
        return None
    channels, height, width = value.shape[1:]
    if not isinstance(channels, int) or not isinstance(height, int) or not isinstance(width, int):
        return None
    return (channels, height, width) if channels in (1, 3) and height and width else None


def classes_of(graph: Graph) -> int | None:
    """How many scores a graph gives for each row of its batch; None where it gives something else."""
    if len(graph.outputs) != 1:
        return None
    shape = graph.outputs[0].shape
    if graph.outputs[0].dtype not in FLOATING or shape is None or len(shape) != 2:
        return None
    return shape[1] if isinstance(shape[1], int) and shape[1] > 0 else None


def _full(domain: str, operator: str) -> str:
    return f"{domain}.{operator}" if domain else operator


def _value(value: Value) -> dict[str, Any]:
    shape = None if value.shape is None else list(value.shape)
    return {"name": value.name, "dtype": value.dtype, "shape": shape}


def _free_first(value: Value) -> bool:
    return value.shape is not None and bool(value.shape) and not isinstance(value.shape[0], int)


def _unknown(graph: Graph, operators: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """The operators that the engine does not know, with the first nodes that use them."""
    found: dict[tuple[str, str], list[str]] = {key: [] for key in operators if not is_known(*key)}
    for index, node in enumerate(graph.nodes):
        names = found.get((node.domain, node.operator))
        if names is not None and len(names) < EXAMPLES:
            names.append(node.name[:120] or f"number {index}")
    return [
        {
            "operator": operator,
            "domain": domain or "ai.onnx",
            "count": operators[domain, operator],
            "nodes": names,
            "reason": "not known to the engine"
            if domain in ("", "ai.onnx.ml")
            else "of a domain that the engine does not know",
        }
        for (domain, operator), names in found.items()
    ]
