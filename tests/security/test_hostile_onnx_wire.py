"""Bytes that are no ONNX file, or only almost: each is refused with a message, quickly, in little memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from compression.errors import ModelRejected, OnnxInvalid
from compression.loading.admission import BytesSource, admit_model
from compression.loading.onnx.wire import MAXIMUM_FIELDS, MAXIMUM_TEXT
from tests.onnx_wire import graph, key, long, model, node, tensor, value, varint, whole
from tests.security import hostile
from tests.security.hostile import CountedSource

GOOD = model()
DEEP = b""
for _ in range(2000):
    DEEP = long(7, DEEP)

CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "HTML": (b"<!DOCTYPE html><html><body>not found</body></html>", "HTML"),
    "XML": (b"<?xml version='1.0'?>", "HTML or XML"),
    "JSON": (b'{"graph": []}', "JSON"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "plain text": (b"This is my model, honestly. " * 9, "no ONNX model"),
    "zeros": (bytes(4096), "field with the number 0"),
    "ones": (b"\xff" * 4096, "more than ten bytes"),
    "noise": (bytes((n * 197 + 31) % 256 for n in range(4096)), "no ONNX model"),
    "a dataset": (b"PAR1" + bytes(60), "no ONNX model"),
    "no graph": (whole(1, 10) + long(8, whole(2, 18)), "no graph with a version"),
    "no version": (long(7, graph()) + long(8, whole(2, 18)), "no graph with a version"),
    "cut off in the graph": (GOOD[: len(GOOD) // 2], "are left"),
    "cut off in a number": (GOOD + b"\x80", "cut off within a number"),
    "cut off in a key": (GOOD + b"\xf0", "cut off within a number"),
    "bytes behind the end": (GOOD + b"\x00", "field with the number 0"),
    "a varint bomb": (GOOD + b"\x08" + b"\xff" * 100_000, "more than ten bytes"),
    "a varint of eleven bytes": (b"\x08" + b"\x80" * 10 + b"\x01" + GOOD, "more than ten bytes"),
    "a number of 70 bits": (b"\x08" + b"\xff" * 9 + b"\x7f" + GOOD, "more than 64 bits"),
    "a length of 2^63": (whole(1, 10) + key(7, 2) + varint(1 << 63), "should have 9,223,372,036,854,775,808"),
    "a length beyond the end": (whole(1, 10) + key(7, 2) + varint(len(GOOD)), "are left"),
    "a length beyond its message": (model(key(1, 2) + varint(100) + bytes(9)), "only 9 are left"),
    "a group": (GOOD + key(3, 3) + key(3, 4), "wire type 3"),
    "the end of a group": (GOOD + key(3, 4), "wire type 4"),
    "wire type 6": (GOOD + key(3, 6), "wire type 6"),
    "wire type 7": (GOOD + key(3, 7), "wire type 7"),
    "a graph that is a number": (whole(1, 10) + whole(7, 3), "'graph' should be a message"),
    "a graph of four bytes": (whole(1, 10) + key(7, 5) + bytes(4), "'graph' should be a message"),
    "a version that is text": (long(1, "10") + long(7, graph()), "'ir_version' should be an integer"),
    "a name that is a number": (model(graph(nodes=[whole(4, 3)])), "'op_type' should be text"),
    "a node that is a number": (model(graph(more=whole(1, 3))), "'node' should be a message"),
    "dimensions that are bytes": (
        model(graph(tensors=[key(1, 5) + bytes(4) + tensor()])),
        "'dims' should be an integer",
    ),
    "raw data that is a number": (
        model(graph(tensors=[tensor(raw=None, more=whole(9, 1))])),
        "'raw_data' should be a message",
    ),
    "floats one by one": (
        model(graph(tensors=[tensor(raw=None, more=(key(4, 5) + bytes(4)) * 4)])),
        "'float_data' should be a message",
    ),
    "an unknown field": (GOOD + whole(99, 1), "the field 99"),
    "an unknown field of a graph": (model(graph(more=whole(99, 1))), "the field 99"),
    "an unknown field of a node": (model(graph(nodes=[node(more=long(99, b""))])), "the field 99"),
    "two graphs": (GOOD + long(7, graph()), "'graph' twice"),
    "two versions": (GOOD + whole(1, 10), "'ir_version' twice"),
    "two names of a graph": (model(graph(more=long(2, "again"))), "'name' twice"),
    "two operators": (model(graph(nodes=[node(more=long(4, "Relu"))])), "'op_type' twice"),
    "two types of a tensor": (model(graph(tensors=[tensor(more=whole(2, 1))])), "'data_type' twice"),
    "raw data twice": (model(graph(tensors=[tensor(more=long(9, bytes(16)))])), "'raw_data' twice"),
    "two types of an input": (model(graph(inputs=[value() + long(2, b"")])), "'type' twice"),
    "a name that is no UTF-8": (model(graph(nodes=[node(name=b"\xff\xfe")])), "not UTF-8"),
    "a surrogate": (model(graph(nodes=[node(name=b"\xed\xa0\x80")])), "not UTF-8"),
    "an overlong UTF-8": (model(graph(nodes=[node(name=b"\xc0\x80")])), "not UTF-8"),
    "an input that is no UTF-8": (model(graph(nodes=[node(inputs=[b"\x80", "w"])])), "not UTF-8"),
    "a producer that is no UTF-8": (model(more=long(2, b"\xff")), "not UTF-8"),
    "a name without end": (model(graph(nodes=[node(name="x" * 2000)])), "2,000 bytes"),
    "an input without end": (model(graph(nodes=[node(inputs=["x" * (1 << 20), "w"])])), "1,048,576 bytes"),
    "a domain without end": (model(more=long(8, long(1, "d" * 5000) + whole(2, 1))), "5,000 bytes"),
    "graphs within graphs": (model(DEEP), "the field 7"),
    "a key of a number too large": (GOOD + varint(1 << 40), "number 137438953472"),
}  # fmt: skip


def refused(data: bytes, words: str = "", seconds: float = 0.1) -> None:
    started = time.thread_time()
    source = CountedSource(data)
    error = hostile.refused(ModelRejected, lambda: admit_model({"model.onnx": source}), words, seconds=60)
    assert time.thread_time() - started < seconds
    assert error.message.startswith("model.onnx: ")
    assert error.message.isprintable()


@pytest.mark.parametrize("name", CASES)
def test_bytes_that_are_no_model(name: str) -> None:
    refused(*CASES[name])


def test_a_file_cut_off_anywhere() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(OnnxInvalid):
            admit_model({"model.onnx": BytesSource(GOOD[:length])})
    admit_model({"model.onnx": BytesSource(GOOD)})


def test_a_file_of_terabytes_is_not_read() -> None:
    """A graph that says it has a terabyte, in a file that says so too, with nothing in it."""
    head = whole(1, 10) + key(7, 2) + varint(1 << 40)
    source = CountedSource(head, size=len(head) + (1 << 40))
    hostile.refused(OnnxInvalid, lambda: admit_model({"model.onnx": source}))
    assert source.taken < 1000


def bomb(part: bytes) -> bytes:
    return part * ((2 << 20) // len(part))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "inputs": (lambda: model(graph(nodes=[bomb(long(1, "ab"))])), "'input'"),
    "attributes": (lambda: model(graph(nodes=[bomb(long(5, b""))])), "'attribute'"),
    "strings": (lambda: model(graph(nodes=[node(more=long(5, bomb(long(9, b""))))])), "'strings'"),
    "numbers": (lambda: model(graph(nodes=[node(more=long(5, bomb(whole(8, 1))))])), "numbers"),
    "values": (lambda: model(graph(more=bomb(long(13, b"")))), "'value_info'"),
    "opsets": (lambda: model(more=bomb(long(8, b""))), "'opset_import'"),
    "metadata": (lambda: model(more=bomb(long(14, b""))), "'metadata_props'"),
    "entries": (lambda: model(graph(tensors=[tensor(dims=()) + bomb(long(13, b""))])), "'external_data'"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_time(name: str) -> None:
    build, words = BOMBS[name]
    refused(build(), words, seconds=4)


@pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"numbers", "values"}))
def test_bombs_fill_no_memory(name: str) -> None:
    data = BOMBS[name][0]()
    source = BytesSource(data)
    tracemalloc.start()
    try:
        hostile.refused(ModelRejected, lambda: admit_model({"model.onnx": source}), seconds=60)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_text_of_all_names_is_limited() -> None:
    """Nodes whose names are as long as names may be, 70 MiB of them."""
    name = b"n" * (MAXIMUM_TEXT - 8)
    part = long(1, node("Relu", ["x"], [], name=name))
    data = model(graph(more=part * ((70 << 20) // len(part))))
    refused(data, "more than 64 MiB", seconds=5)


def test_fields_are_limited() -> None:
    part = long(1, node(more=long(5, b"") * 9_000))
    data = model(graph(more=part * (MAXIMUM_FIELDS // 9_000 + 2)))
    refused(data, seconds=5)
