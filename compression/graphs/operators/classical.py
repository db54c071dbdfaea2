"""Operators of ai.onnx.ml that scikit-learn's exporter puts around networks."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.graphs.errors import GraphInvalid
from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator


def _numbers(node: Node, name: str, like: Tensor) -> Tensor:
    value = node.attributes.get(name)
    if not isinstance(value, tuple):
        raise GraphInvalid(f"{node.label}: attribute {name!r} is missing")
    return torch.tensor([float(item) for item in value], dtype=like.dtype, device=like.device)


@operator("Scaler", domain="ai.onnx.ml")
def scaler(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    data = x[0] if x[0].is_floating_point() else x[0].to(torch.float32)
    return (data - _numbers(node, "offset", data)) * _numbers(node, "scale", data)


@operator("Normalizer", domain="ai.onnx.ml")
def normalizer(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    data = x[0] if x[0].is_floating_point() else x[0].to(torch.float32)
    kind = node.text("norm", "MAX")
    if kind == "MAX":
        norm = data.amax(-1, keepdim=True)
    else:
        norm = torch.linalg.vector_norm(data, 1 if kind == "L1" else 2, dim=-1, keepdim=True)
    return torch.where(norm == 0, data, data / norm)


@operator("LinearRegressor", domain="ai.onnx.ml")
def linear_regressor(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    data = x[0].to(torch.float32)
    weights = _numbers(node, "coefficients", data).reshape(node.integer("targets", 1), -1)
    made = data @ weights.T
    return made + _numbers(node, "intercepts", data) if "intercepts" in node.attributes else made


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    data = x[0] if x[0].ndim > 1 else x[0].reshape(1, -1)
    return data.index_select(-1, x[1].flatten().to(torch.int64))
