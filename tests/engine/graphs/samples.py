"""Graphs made by hand, and running them in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from compression.graphs.graph import Graph, write_graph

Arrays = Mapping[str, NDArray[Any]]


def runtime(model: ModelProto | Graph, inputs: Arrays) -> list[NDArray[Any]]:
    """The outputs of a model in ONNX Runtime."""
    proto = write_graph(model) if isinstance(model, Graph) else model
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def model_of(
    nodes: Sequence[Any],
    inputs: Arrays,
    outputs: Sequence[str],
    weights: Arrays | None = None,
    opset: int = 20,
) -> ModelProto:
    """A model of these nodes; its inputs are of the types of the samples, the first axis of any size."""
    values = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            ["batch", *array.shape[1:]] if array.ndim else [],
        )
        for name, array in inputs.items()
    ]
    made = [ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "made", values, made, stored)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    made_model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    told = shape_inference.infer_shapes(made_model)  # the types of the outputs
    for value in told.graph.output:
        if not value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return told


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers of this shape."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def whole(*items: int) -> NDArray[np.int64]:
    """Integers as a vector."""
    return np.array(items, dtype=np.int64)
