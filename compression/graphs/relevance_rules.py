"""What one operator hands on of the relevance that its outputs have; see `relevance.py` for the rules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.graphs.errors import OperatorUnknown
from compression.graphs.graph import Graph, Node
from compression.graphs.operators import Circumstances, execute

EPSILON = 1e-2
"""The stabiliser e, as a share of the root mean square of z over the batch."""
LINEAR = {
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "Mean", "Neg",
    "ReduceMean", "ReduceSum", "Resize", "Sub", "Sum",
}  # fmt: skip
SCALING = {"Div", "Einsum", "Gemm", "MatMul", "Mul"}
"""Linear where all but one of the inputs are constant."""
PRODUCTS = {"Einsum", "MatMul", "Mul"}
MOVING = {
    "Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
    "MaxPool", "Pad", "ReduceMax", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
PASSING = {
    "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Pow", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
}  # fmt: skip
NORMS = {"GroupNormalization", "InstanceNormalization", "LayerNormalization"}

Arguments = list[Tensor | None]


def parts(
    node: Node, arguments: Arguments, data: list[int], found: Mapping[str, Tensor], opset: int
) -> list[Tensor]:
    """The relevance of the inputs `data` of a node. OperatorUnknown for an operator without a rule."""
    multiplied = node.operator in SCALING or node.operator in {"Conv", "ConvTranspose", "BatchNormalization"}
    alone = data == [0] or (node.operator in SCALING and len(data) == 1)
    if node.operator in PASSING and data == [0]:
        return [found[node.value]]
    if node.operator == "Softmax" and data == [0]:
        return [_softmax(node, arguments, found)]
    if node.operator in NORMS and data == [0]:
        return _through(node, arguments, data, found, opset, "norm")
    if node.operator in PRODUCTS and len(data) == 2:
        return [part / 2 for part in _through(node, arguments, data, found, opset, "linear")]
    if node.operator == "Div" and data == [0, 1]:
        (part,) = _through(node, arguments, [0], found, opset, "linear")
        divisor = arguments[1]
        assert divisor is not None
        return [part, torch.zeros_like(divisor)]
    if (alone and node.operator in SCALING) or (node.operator in LINEAR and (alone or not multiplied)):
        return _through(node, arguments, data, found, opset, "linear")
    if node.operator in MOVING and (alone or node.operator in {"Concat", "Where"}):
        return _through(node, arguments, data, found, opset, "moving")
    raise OperatorUnknown(f"{node.label}: relevance has no rule for this operator")


def _through(
    node: Node, arguments: Arguments, data: list[int], found: Mapping[str, Tensor], opset: int, how: str
) -> list[Tensor]:
    inputs = list(arguments)
    leaves = []
    for place in data:
        given = arguments[place]
        assert given is not None
        leaf = given.detach().clone().requires_grad_()
        inputs[place] = leaf
        leaves.append(leaf)
    with torch.enable_grad():
        outputs = (
            (_norm(node, inputs, opset),) if how == "norm" else execute(node, inputs, Circumstances(opset))
        )
    pairs = [(made, found[name]) for name, made in zip(node.outputs, outputs, strict=False) if name in found]
    moving = how == "moving"
    slopes = [relevance if moving else relevance / stable(made.detach()) for made, relevance in pairs]
    got = torch.autograd.grad([made for made, _ in pairs], leaves, slopes, allow_unused=True)
    made = [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(got, leaves, strict=True)]
    return made if moving else [part * leaf.detach() for part, leaf in zip(made, leaves, strict=True)]


def stable(z: Tensor) -> Tensor:
    """z, a little further from zero."""
    epsilon = EPSILON * z.square().mean().sqrt().clamp(min=torch.finfo(z.dtype).tiny)
    return z + torch.where(z >= 0, epsilon, -epsilon)


def _softmax(node: Node, arguments: Arguments, found: Mapping[str, Tensor]) -> Tensor:
    x, relevance = arguments[0], found[node.value]
    assert x is not None
    axis = node.integer("axis", -1)
    share = torch.softmax(x, axis)
    # what a mask sets to minus infinity has neither share nor relevance
    x = torch.where(share > 0, x, 0.0)
    return x * (relevance - share * relevance.sum(axis, keepdim=True))


def _norm(node: Node, inputs: Arguments, opset: int) -> Tensor:
    """What a norm gives, its deviation being a constant."""
    x, scale, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert x is not None
    assert scale is not None
    grouped, axes = x, list(range(2, x.ndim))
    per_channel = [-1] + [1] * (x.ndim - 2)
    if node.operator == "LayerNormalization":
        first = node.integer("axis", -1) % x.ndim
        axes, per_channel = list(range(first, x.ndim)), list(scale.shape)
    elif node.operator == "GroupNormalization":
        groups = node.integer("num_groups", 1)
        grouped, axes = x.reshape(x.shape[0], groups, -1), [2]
        if opset < 21:  # one scale and bias for each group
            each = x.shape[1] // groups
            scale = scale.repeat_interleave(each)
            bias = None if bias is None else bias.repeat_interleave(each)
    variance, mean = torch.var_mean(grouped, dim=axes, correction=0, keepdim=True)
    deviation = (variance + node.number("epsilon", 1e-5)).sqrt().detach()
    normal = ((grouped - mean) / deviation).reshape(x.shape) * scale.reshape(per_channel)
    return normal if bias is None else normal + bias.reshape(per_channel)


class Functions:
    """Values that are functions of single elements of another, however many operators an exporter writes
    them with (x * sigmoid(x), GELU by erf): `source` finds what both factors of a product are made of."""

    def __init__(self, graph: Graph, computed: set[str]) -> None:
        self._from: dict[str, str] = {}
        known = PASSING | SCALING | {"Add", "Cast", "Identity", "Neg", "Sub"}
        known -= {"Einsum", "Gemm", "MatMul"}
        for node in graph.nodes:
            inputs = {name for name in node.inputs if name in computed}
            if node.operator not in known or not inputs:
                continue
            if len(inputs) == 1:
                self._from[node.value] = inputs.pop()
            elif len(inputs) == 2:
                source = self.source(*sorted(inputs))
                if source is not None:
                    self._from[node.value] = source

    def source(self, one: str, other: str) -> str | None:
        """The nearest value that both are functions of, element by element; None if there is none."""
        before = self._chain(one)
        return next((name for name in self._chain(other) if name in before), None)

    def _chain(self, name: str) -> dict[str, None]:
        found = {name: None}
        while name in self._from:
            name = self._from[name]
            found[name] = None
        return found
