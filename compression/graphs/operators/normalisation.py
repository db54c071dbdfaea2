"""Normalisation and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, axis_of, operator, refuse


@operator("BatchNormalization")
def batch_normalization(node: Node, x: Inputs, run: Circumstances) -> Tensor:
    if node.integer("training_mode", 0):
        raise refuse(node, "the training mode of an exported graph")
    # ONNX keeps `momentum` of the old statistics, torch takes that much of the new
    keep = node.number("momentum", 0.9)
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], run.training, 1 - keep, node.number("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axes = list(range(2, x[0].ndim))
    variance, mean = torch.var_mean(x[0], dim=axes, correction=0, keepdim=True)
    shape = [1, -1] + [1] * len(axes)
    normal = (x[0] - mean) * torch.rsqrt(variance + node.number("epsilon", 1e-5))
    return normal * x[1].reshape(shape) + x[2].reshape(shape)


@operator("LayerNormalization")
def layer_normalization(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    if any(node.outputs[1:]):
        raise refuse(node, "the output of mean or deviation")
    axis = axis_of(node.integer("axis", -1), x[0].ndim, node)
    sizes = list(x[0].shape[axis:])
    normal = F.layer_norm(x[0], sizes, None, None, node.number("epsilon", 1e-5)) * x[1]
    bias = x.optional(2)
    return normal if bias is None else normal + bias


@operator("GroupNormalization")
def group_normalization(node: Node, x: Inputs, run: Circumstances) -> Tensor:
    groups = node.integer("num_groups", 1)
    scale, bias = x[1], x[2]
    if run.opset < 21:  # one scale and bias for each group
        scale, bias = (one.repeat_interleave(x[0].shape[1] // groups) for one in (scale, bias))
    return F.group_norm(x[0], groups, scale, bias, node.number("epsilon", 1e-5))


@operator("LpNormalization")
def lp_normalization(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    norm = torch.linalg.vector_norm(x[0], node.integer("p", 2), dim=node.integer("axis", -1), keepdim=True)
    return torch.where(norm == 0, x[0], x[0] / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    variance, mean = torch.var_mean(x[0], dim=node.integers("axes") or (0, 2, 3), correction=0, keepdim=True)
    return (x[0] - mean) / (torch.sqrt(variance) + 1e-9)


@operator("LRN")
def local_response_normalization(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    size = node.integer("size", 1)
    squares = F.pad((x[0] ** 2).movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    factor = node.number("bias", 1.0) + node.number("alpha", 1e-4) / size * total
    return x[0] / factor ** node.number("beta", 0.75)


@operator("Softmax")
def softmax(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.softmax(x[0], node.integer("axis", -1))


@operator("LogSoftmax")
def log_softmax(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.log_softmax(x[0], node.integer("axis", -1))


@operator("Hardmax")
def hardmax(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    axis = node.integer("axis", -1)
    best = x[0].argmax(axis, keepdim=True)
    return torch.zeros_like(x[0]).scatter(axis, best, 1)
