"""Writes ONNX files field by field, sound or not, without the onnx package."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def varint(value: int) -> bytes:
    """A number as a varint; a negative one as its 64 bits."""
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def whole(number: int, value: int) -> bytes:
    """An integer field."""
    return key(number, 0) + varint(value)


def long(number: int, data: bytes | str) -> bytes:
    """Text, bytes, a message or packed numbers."""
    data = data.encode() if isinstance(data, str) else data
    return key(number, 2) + varint(len(data)) + data


def tensor(
    name: str | bytes = "w",
    dims: Sequence[int] = (2, 2),
    dtype: int = 1,
    raw: bytes | None = b"\x00" * 16,
    more: bytes = b"",
    packed: bool = False,
) -> bytes:
    """A tensor; `more` are further fields of it."""
    sizes = long(1, b"".join(map(varint, dims))) if packed else b"".join(whole(1, size) for size in dims)
    data = b"" if raw is None else long(9, raw)
    return sizes + whole(2, dtype) + long(8, name) + data + more


def external(**entries: str) -> bytes:
    """The fields of a tensor that say that its data are in another file."""
    return whole(14, 1) + b"".join(long(13, long(1, k) + long(2, v)) for k, v in entries.items())


def node(
    operator: str = "MatMul",
    inputs: Sequence[str | bytes] = ("x", "w"),
    outputs: Sequence[str | bytes] = ("y",),
    more: bytes = b"",
    name: str | bytes = "n",
) -> bytes:
    ends = b"".join(long(1, each) for each in inputs) + b"".join(long(2, each) for each in outputs)
    return ends + long(3, name) + long(4, operator) + more


def value(name: str | bytes = "x", dims: Sequence[int | str] = ("batch", 2), dtype: int = 1) -> bytes:
    """An input or output."""
    sizes = b"".join(long(1, whole(1, d) if isinstance(d, int) else long(2, d)) for d in dims)
    return long(1, name) + long(2, long(1, whole(1, dtype) + long(2, sizes)))


def graph(
    nodes: Sequence[bytes] | None = None,
    tensors: Sequence[bytes] | None = None,
    inputs: Sequence[bytes] | None = None,
    outputs: Sequence[bytes] | None = None,
    more: bytes = b"",
) -> bytes:
    parts = ((1, nodes, node()), (5, tensors, tensor()), (11, inputs, value()), (12, outputs, value("y")))
    made = b"".join(
        long(number, each) for number, given, usual in parts for each in ([usual] if given is None else given)
    )
    return made + long(2, "g") + more


def model(body: bytes | None = None, *, opset: int = 18, ir: int = 10, more: bytes = b"") -> bytes:
    """A file with this graph, by default a product with a 2x2 matrix."""
    return whole(1, ir) + long(7, graph() if body is None else body) + long(8, whole(2, opset)) + more


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def small_network(place: Path | None = None, **options: object) -> onnx.ModelProto:
    """A convolutional classifier of 3x8x8 images with BatchNorm, a residual sum and four classes, by the onnx
    package; written to `place` if given, with `options` of onnx.save."""
    import numpy as np

    generator = np.random.default_rng(0)
    made = {
        "conv1.weight": generator.normal(size=(6, 3, 3, 3)),
        "conv1.bias": generator.normal(size=6),
        "conv2.weight": generator.normal(size=(6, 6, 3, 3)),
        **{f"norm.{part}": np.ones(6) for part in ("weight", "bias", "mean", "var")},
        "fc.weight": generator.normal(size=(4, 6)),
        "fc.bias": generator.normal(size=4),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", *(k for k in made if k[:4] == "norm")], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "conv2.weight"], ["d"], "conv2", pads=[1, 1, 1, 1], group=1),
        helper.make_node("Add", ["d", "c"], ["e"], "add"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten", axis=1),
        helper.make_node("Gemm", ["g", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    body = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in made.items()],
    )
    network = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if place is not None:
        onnx.save(network, str(place), **options)
    return network
