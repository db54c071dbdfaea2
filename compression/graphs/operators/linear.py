"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator


@operator("MatMul")
def matmul(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.matmul(x[0], x[1])


@operator("Gemm")
def gemm(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    a = x[0].T if node.integer("transA", 0) else x[0]
    b = x[1].T if node.integer("transB", 0) else x[1]
    made = a @ b
    alpha, beta, c = node.number("alpha", 1.0), node.number("beta", 1.0), x.optional(2)
    made = made if alpha == 1 else made * alpha
    if c is None:
        return made
    return made + (c if beta == 1 else c * beta)


@operator("Einsum")
def einsum(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return torch.einsum(node.text("equation", ""), *x.all())
