"""The weights of a graph as matrices [out, in], and back."""

from __future__ import annotations

from torch import Tensor

from compression.anatomy.graph_sites import GraphSite, Weights, find_weights
from compression.graphs.executor import trained_initializers
from compression.graphs.graph import Graph, Node
from compression.loading.onnx.matrices import Operation


def weights_of(graph: Graph) -> Weights:
    """The sites of a graph, and why other tensors that are multiplied by are none."""
    shapes = {name: graph.initializers[name].shape for name in trained_initializers(graph)}
    return find_weights([_operation(node) for node in graph.nodes], shapes)


def _operation(node: Node) -> Operation:
    settings = {name: value for name, value in node.attributes.items() if isinstance(value, int)}
    operator = f"{node.domain}.{node.operator}" if node.domain else node.operator
    return Operation(operator, node.inputs, node.outputs, settings, node.integers("perm"))


def matrix(site: GraphSite, stored: Tensor) -> Tensor:
    """A stored tensor as the matrix [out, in] of a site (a view or a copy)."""
    if site.kind == "Conv":
        return stored.movedim(1, -1).reshape(site.shape)
    if site.kind == "ConvTranspose":
        parts = stored.reshape(site.groups, site.channels, *stored.shape[1:])
        return parts.movedim(1, -1).reshape(site.shape)
    return stored.T if site.transposed else stored


def stored_form(site: GraphSite, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The opposite of `matrix`: a matrix [out, in] in the shape in which its tensor is stored."""
    if site.kind == "Conv":
        return values.reshape(shape[0], *site.kernel, site.channels).movedim(-1, 1).contiguous()
    if site.kind == "ConvTranspose":
        parts = values.reshape(site.groups, site.rows, *site.kernel, site.channels)
        return parts.movedim(-1, 1).reshape(shape).contiguous()
    return (values.T if site.transposed else values).contiguous()
