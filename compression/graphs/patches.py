"""A convolution as a product of matrices."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.convolution import padded, window


def patches(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """What each output of a node is a product of, as rows: [positions, in] in the order of its outputs, a
    convolution's inputs channel by channel, so that those of a group are neighbours. For Gemm and MatMul
    whose second input is the weight, and convolutions over one or two axes."""
    if node.operator in {"Gemm", "MatMul"}:
        return x.reshape(-1, x.shape[-1])
    strides, dilations, before, after = window(node, x.shape[2:], weight.shape[2:])
    x = padded(x, before, after, 0.0)
    if x.ndim == 3:
        x, strides, dilations = x.unsqueeze(2), [1, *strides], [1, *dilations]
    kernel = (weight.shape[2] if weight.ndim == 4 else 1, weight.shape[-1])
    rows = F.unfold(x, kernel, (dilations[0], dilations[1]), 0, (strides[0], strides[1]))
    return rows.transpose(1, 2).flatten(0, 1)
