"""Whether the parts of an ONNX graph fit together: every value defined once and before it is used, no cycle,
weights of the shapes that their operators take."""

from __future__ import annotations

from collections.abc import Mapping

from compression.loading.onnx.parts import Graph, Header, Node, Place, Tensor, Unsupported, shown
from compression.loading.onnx.wire import Malformed


def check_graph(header: Header, graph: Graph, file: str) -> None:
    """Raises OnnxInvalid or OnnxUnsupported for the first part that does not fit."""
    with Place(file, "graph", "/graph"):
        if not graph.nodes:
            raise Malformed("it has no nodes")
        if not graph.inputs:
            raise Malformed("it has no inputs besides its initializers, so it is a constant")
        if not graph.outputs:
            raise Malformed("it has no outputs")
    _check_domains(header, graph, file)
    _check_order(graph, file)
    tensors = constants(graph)
    for index, node in enumerate(graph.nodes):
        check = _SHAPES.get(node.operator) if not node.domain else None
        if check is not None:
            with place_of(file, index, node):
                check(node, [tensors.get(name) for name in node.inputs])


def constants(graph: Graph) -> dict[str, Tensor]:
    """The stored tensors of a graph by the name of the value: initializers, and what Constant nodes give."""
    found = dict(graph.initializers)
    for node in graph.nodes:
        tensor = node.constant
        if tensor is not None and node.outputs:
            found[node.outputs[0]] = tensor
    return found


def place_of(file: str, index: int, node: Node) -> Place:
    """Where a node is, for errors."""
    return Place(file, f"node number {index} ({node.operator})", f"/graph/node/{index}", node.name)


def _check_domains(header: Header, graph: Graph, file: str) -> None:
    for index, node in enumerate(graph.nodes):
        if node.domain not in header.opsets:
            with place_of(file, index, node):
                raise Malformed(
                    f"its operator is of the domain {shown(node.domain)}, whose operator set is not imported"
                )


def _check_order(graph: Graph, file: str) -> None:
    defined = {value.name for value in graph.inputs} | graph.initializers.keys()
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        with place_of(file, index, node):
            if not any(node.outputs):
                raise Malformed("it has no output")
            for name in node.outputs:
                if not name:
                    continue
                if name in defined:
                    raise Malformed(
                        f"its output {shown(name)} is also an input or an initializer of the graph"
                    )
                if name in makers:
                    raise Malformed(
                        f"its output {shown(name)} is also the output of node number {makers[name]}"
                    )
                makers[name] = index
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            if not name or name in defined or makers.get(name, index) < index:
                continue
            with place_of(file, index, node):
                if name not in makers:
                    raise Malformed(f"its input {shown(name)} is never defined")
                _refuse_order(graph, makers, index, name)
    for position, value in enumerate(graph.outputs):
        if value.name not in makers and value.name not in defined:
            with Place(file, f"output number {position}", f"/graph/output/{position}", value.name):
                raise Malformed("no node makes it")


def _refuse_order(graph: Graph, makers: Mapping[str, int], index: int, name: str) -> None:
    """Raises Malformed: `name` comes after the node that reads it, or depends on it."""
    seen = {makers[name]}
    stack = [makers[name]]
    while stack:
        current = stack.pop()
        if current == index:
            raise Malformed(f"its input {shown(name)} depends on its own output: the graph has a cycle")
        for each in graph.nodes[current].inputs:
            maker = makers.get(each)
            if maker is not None and maker not in seen:
                seen.add(maker)
                stack.append(maker)
    raise Malformed(
        f"its input {shown(name)} is made by node number {makers[name]}, which comes after it",
        "sort the nodes so that each comes after those that it reads",
    )


_Tensors = list[Tensor | None]


def _refuse(what: str, tensor: Tensor) -> None:
    raise Malformed(
        f"{what} {shown(tensor.name)} has the dimensions {list(tensor.dims)}, which do not fit its operator"
    )


def _number(node: Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    if found is None:
        return default
    if not isinstance(found.value, int):
        raise Malformed(f"its attribute {name!r} should be an integer")
    return found.value


def _check_convolution(node: Node, inputs: _Tensors) -> None:
    if len(inputs) not in (2, 3):
        raise Malformed(f"it has {len(inputs)} inputs; a convolution has 2 or 3")
    weight = inputs[1]
    groups = _number(node, "group", 1)
    if groups < 1:
        raise Malformed(f"its attribute 'group' is {groups}")
    if weight is None:
        return
    if len(weight.dims) < 3:
        _refuse("the weight", weight)
    if weight.dtype == "float64":
        raise Unsupported(
            "it convolves in float64, which ONNX Runtime does not on CPU, so that no result could be checked",
            "export the model in float32",
        )
    turned = node.operator == "ConvTranspose"
    if weight.dims[0] % groups:
        raise Malformed(f"its {weight.dims[0]:,} channels cannot be divided into {groups:,} groups")
    channels = weight.dims[1] * groups if turned else weight.dims[0]
    bias = inputs[2] if len(inputs) == 3 else None
    if bias is not None and bias.dims != (channels,):
        _refuse("the bias", bias)
    kernel = node.attributes.get("kernel_shape")
    if kernel is not None and kernel.value != weight.dims[2:]:
        raise Malformed(f"its attribute 'kernel_shape' differs from its weight, which is {list(weight.dims)}")


def _check_product(node: Node, inputs: _Tensors) -> None:
    if len(inputs) not in (2, 3):
        raise Malformed(f"it has {len(inputs)} inputs; Gemm has 2 or 3")
    for tensor in inputs[:2]:
        if tensor is not None and len(tensor.dims) != 2:
            _refuse("the matrix", tensor)
    bias = inputs[2] if len(inputs) == 3 else None
    weight = inputs[1]
    if bias is None or weight is None:
        return
    width = weight.dims[0 if _number(node, "transB", 0) else 1]
    if len(bias.dims) > 2 or (bias.dims and bias.dims[-1] not in (1, width)):
        _refuse("the bias", bias)


def _check_matrix(node: Node, inputs: _Tensors) -> None:
    if len(inputs) != 2:
        raise Malformed(f"it has {len(inputs)} inputs; MatMul has 2")
    for tensor in inputs:
        if tensor is not None and not tensor.dims:
            _refuse("the matrix", tensor)


def _check_norm(node: Node, inputs: _Tensors) -> None:
    if len(inputs) != 5:
        raise Malformed(f"it has {len(inputs)} inputs; BatchNormalization has 5")
    if _number(node, "training_mode", 0):
        raise Unsupported("it is in training mode", "export the model for inference, after model.eval()")
    known = [tensor for tensor in inputs[1:] if tensor is not None]
    for tensor in known:
        if len(tensor.dims) != 1 or tensor.dims != known[0].dims:
            _refuse("the tensor", tensor)


_SHAPES = {
    "Conv": _check_convolution,
    "ConvTranspose": _check_convolution,
    "Gemm": _check_product,
    "MatMul": _check_matrix,
    "BatchNormalization": _check_norm,
}
