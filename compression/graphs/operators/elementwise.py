"""Operators that compute every element for itself, with broadcasting where there are several inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import TORCH_TYPES, Circumstances, Inputs, operator, refuse

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish,
    "Identity": lambda x: x, "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish,
    "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": lambda x: F.softplus(x, threshold=1e9), "Softsign": F.softsign, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul,
    "Or": torch.logical_or, "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip
VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add,
}  # fmt: skip


def _register() -> None:
    for name, function in UNARY.items():
        operator(name)(functools.partial(_unary, function))
    for name, binary in BINARY.items():
        operator(name)(functools.partial(_binary, binary))
    for name, binary in VARIADIC.items():
        operator(name)(functools.partial(_variadic, binary))


def _unary(function: Callable[[Tensor], Tensor], node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return function(x[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor], node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return function(*_together(x[0], x[1]))


def _variadic(
    function: Callable[[Tensor, Tensor], Tensor], node: Node, x: Inputs, _: Circumstances
) -> Tensor:
    return functools.reduce(lambda a, b: function(*_together(a, b)), x.all())


def _together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the device of the one that is larger: constants and shapes may lie on the CPU."""
    if a.device == b.device:
        return a, b
    return (a, b.to(a.device)) if a.numel() >= b.numel() else (a.to(b.device), b)


_register()


@operator("Div")
def div(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    a, b = _together(x[0], x[1])
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    a, b = _together(x[0], x[1])
    return torch.fmod(a, b) if node.integer("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    a, b = _together(x[0], x[1])
    return torch.pow(a, b).to(a.dtype)


@operator("Mean")
def mean(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return functools.reduce(torch.add, x.all()) / len(x)


@operator("Where")
def where(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    device = max(x.all(), key=lambda one: one.numel()).device
    return torch.where(x[0].to(device), x[1].to(device), x[2].to(device))


@operator("Cast")
def cast(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    kind = TORCH_TYPES.get(node.integer("to", 0))
    if kind is None:
        raise refuse(node, f"the element type {node.integer('to', 0)}")
    return x[0].to(kind)


@operator("CastLike")
def cast_like(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return x[0].to(x[1].dtype)


@operator("Clip")
def clip(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    low, high = x.optional(1), x.optional(2)
    if low is None and high is None:
        return x[0]
    return torch.clamp(
        x[0], None if low is None else low.to(x[0].device), None if high is None else high.to(x[0].device)
    )


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return F.leaky_relu(x[0], node.number("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.where(x[0] > node.number("alpha", 1.0), x[0], torch.zeros_like(x[0]))


@operator("PRelu")
def prelu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.where(x[0] < 0, x[0] * x[1], x[0])


@operator("Elu")
def elu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return F.elu(x[0], node.number("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return F.celu(x[0], node.number("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    alpha = node.number("alpha", 1.67326319217681884765625)
    return node.number("gamma", 1.05070102214813232421875) * F.elu(x[0], alpha)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.clamp(node.number("alpha", 0.2) * x[0] + node.number("beta", 0.5), 0, 1)


@operator("Gelu")
def gelu(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return F.gelu(x[0], approximate=node.text("approximate", "none"))


@operator("Shrink")
def shrink(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    bias, bound = node.number("bias", 0.0), node.number("lambd", 0.5)
    zero = torch.zeros_like(x[0])
    return torch.where(x[0] < -bound, x[0] + bias, torch.where(x[0] > bound, x[0] - bias, zero))


@operator("IsInf")
def is_inf(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    found = torch.isinf(x[0])
    if not node.integer("detect_positive", 1):
        found &= x[0] < 0
    if not node.integer("detect_negative", 1):
        found &= x[0] > 0
    return found


@operator("Dropout")
def dropout(node: Node, x: Inputs, _: Circumstances) -> tuple[Tensor, ...]:
    # as in inference: exported networks that are trained further keep the behaviour that was exported
    return x[0], torch.ones_like(x[0], dtype=torch.bool)
