"""ONNX files whose graphs lie: each is refused with a message, quickly, having read little."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compression.errors import (
    CompressionError,
    FileRefused,
    ModelRejected,
    OnnxInvalid,
    OnnxUnsupported,
    PickleRefused,
)
from compression.loading.admission import BytesSource, FileSource, admit_model
from compression.loading.onnx.structure import MAXIMUM_NODES
from tests.onnx_wire import (
    external,
    floats,
    graph,
    long,
    model,
    node,
    small_network,
    tensor,
    value,
    varint,
    whole,
)
from tests.security import hostile
from tests.security.hostile import CountedSource, llama_files

Files = dict[str, FileSource]
LARGE = 1 << 62


def refused(
    kind: type[ModelRejected], action: Callable[[], object], words: str = "", seconds: float = 0.1
) -> CompressionError:
    """As everywhere, within so many seconds of this thread's computing: others may have the machine."""
    started = time.thread_time()
    error = hostile.refused(kind, action, words, seconds=60)
    assert time.thread_time() - started < seconds
    return error


def files(data: bytes, **others: bytes) -> Files:
    """A model with the files beside it; `_` in their names stands for a dot."""
    named = {name.replace("_", "."): BytesSource(each) for name, each in others.items()}
    return {"model.onnx": BytesSource(data), **named}


def bad_tensor(**options: object) -> bytes:
    return model(graph(tensors=[tensor(**options)]))  # type: ignore[arg-type]


def bad_node(*nodes: bytes) -> bytes:
    return model(graph(nodes=nodes))


def attribute(number: int, data: bytes = b"", name: str = "a") -> bytes:
    """An attribute of the type `number`, as a field of a node."""
    return long(5, long(1, name) + data + whole(20, number))


CYCLE = [
    node(inputs=["x", "b"], outputs=["a"], name="one"),
    node(inputs=["a", "w"], outputs=["b"], name="two"),
]

Case = tuple[type[ModelRejected], bytes, str]
CASES: dict[str, Case] = {
    # What defines what.
    "a cycle": (OnnxInvalid, bad_node(*CYCLE, node(inputs=["a", "w"])), "cycle"),
    "a node that reads itself": (OnnxInvalid, bad_node(node(inputs=["x", "y"])), "cycle"),
    "not sorted": (
        OnnxInvalid,
        bad_node(node(inputs=["a", "w"]), node(inputs=["x", "w"], outputs=["a"])),
        "comes after it; sort",
    ),
    "never defined": (OnnxInvalid, bad_node(node(inputs=["x", "ghost"])), "'ghost' is never defined"),
    "output of nothing": (OnnxInvalid, model(graph(outputs=[value("z")])), "no node makes it"),
    "two nodes make one": (OnnxInvalid, bad_node(node(), node()), "also the output of node number 0"),
    "a node overwrites an input": (OnnxInvalid, bad_node(node(outputs=["x"]), node()), "also an input"),
    "a node overwrites a weight": (OnnxInvalid, bad_node(node(outputs=["w"]), node()), "or an initializer"),
    "two initializers": (OnnxInvalid, model(graph(tensors=[tensor(), tensor()])), "same name"),
    "two inputs": (OnnxInvalid, model(graph(inputs=[value(), value()])), "same name"),
    "two outputs": (OnnxInvalid, model(graph(outputs=[value("y"), value("y")])), "same name"),
    "an attribute twice": (
        OnnxInvalid,
        bad_node(node(more=attribute(2, whole(3, 1)) * 2)),
        "attribute 'a' twice",
    ),
    "no nodes": (OnnxInvalid, model(graph(nodes=[])), "no nodes"),
    "no inputs": (OnnxInvalid, model(graph(inputs=[], nodes=[node(inputs=["w", "w"])])), "no inputs"),
    "no outputs": (OnnxInvalid, model(graph(outputs=[])), "no outputs"),
    "a node without outputs": (OnnxInvalid, bad_node(node(outputs=[]), node()), "no output"),
    "no weights": (OnnxUnsupported, model(graph(nodes=[node(inputs=["x", "x"])])), "nothing to prune"),
    # Versions and domains.
    "opset 12": (OnnxUnsupported, model(opset=12), "version 12; taken in are 13 to 22"),
    "opset 23": (OnnxUnsupported, model(opset=23), "convert_version"),
    "opset -1": (OnnxUnsupported, model(opset=-1), "version -1"),
    "no opset": (OnnxInvalid, whole(1, 10) + long(7, graph()), "no version of the operator set"),
    "two opsets": (OnnxInvalid, model(more=long(8, long(1, "ai.onnx") + whole(2, 18))), "twice"),
    "ir 14": (OnnxUnsupported, model(ir=14), "ir_version is 14"),
    "ir 99": (OnnxUnsupported, model(ir=99), "set model.ir_version"),
    "unknown domain": (OnnxInvalid, bad_node(node(more=long(7, "com.evil"))), "'com.evil', whose"),
    "an operator that is no name": (OnnxInvalid, bad_node(node("../x")), "no name of an operator"),
    # What holds graphs and functions.
    "If": (OnnxUnsupported, bad_node(node("If", more=attribute(5, long(6, graph())))), "If holds a graph"),
    "Loop": (OnnxUnsupported, bad_node(node("Loop")), "Loop holds a graph"),
    "Scan": (OnnxUnsupported, bad_node(node("Scan")), "Scan holds a graph"),
    "a graph in a node": (OnnxUnsupported, bad_node(node(more=attribute(5, long(6, graph())))), "a graph"),
    "a function": (OnnxUnsupported, model(more=long(25, long(1, "f"))), "inline_local_functions"),
    "training": (OnnxUnsupported, model(more=long(20, b"")), "training"),
    "sparse": (OnnxUnsupported, model(graph(more=long(15, b""))), "sparse initializers"),
    "quantised": (OnnxUnsupported, model(graph(more=long(14, b""))), "quantised"),
    "a sequence": (
        OnnxUnsupported,
        model(graph(inputs=[long(1, "x") + long(2, long(4, b""))])),
        "sequence_type",
    ),
    "a reference": (OnnxInvalid, bad_node(node(more=attribute(2, long(21, "b")))), "of a function"),
    "an attribute of two types": (
        OnnxInvalid,
        bad_node(node(more=attribute(2, whole(3, 1) + long(4, "s")))),
        "of type INT, but holds 's'",
    ),
    "an attribute of no type": (OnnxInvalid, bad_node(node(more=attribute(99))), "type 99"),
    # Dimensions and types.
    "a negative dimension": (OnnxInvalid, bad_tensor(dims=(-2, -2)), "a dimension is -2"),
    "dimensions that overflow": (OnnxInvalid, bad_tensor(dims=(LARGE, 4)), "cannot be"),
    "a product that overflows": (OnnxInvalid, bad_tensor(dims=(1 << 32, 1 << 32)), "ask for more than"),
    "many dimensions": (OnnxUnsupported, bad_tensor(dims=(1,) * 9, raw=bytes(4)), "9 dimensions"),
    "a huge initializer": (OnnxInvalid, bad_tensor(dims=(1 << 20, 1 << 20)), "4,398,046,511,104 bytes"),
    "too few bytes": (OnnxInvalid, bad_tensor(raw=bytes(15)), "ask for 16 bytes, but 15 are stored"),
    "too many bytes": (OnnxInvalid, bad_tensor(raw=bytes(17)), "but 17 are stored"),
    "no data": (OnnxInvalid, bad_tensor(raw=None), "no data"),
    "empty, with data": (OnnxInvalid, bad_tensor(dims=(0, 2)), "ask for 0 bytes, but 16"),
    "no type": (OnnxInvalid, bad_tensor(dtype=0), "number 0"),
    "an unknown type": (OnnxInvalid, bad_tensor(dtype=77), "number 77"),
    "text": (OnnxUnsupported, bad_tensor(dtype=8, raw=None, more=long(6, "a") * 4), "text"),
    "complex": (OnnxUnsupported, bad_tensor(dtype=14), "complex64"),
    "bfloat16": (OnnxUnsupported, bad_tensor(dtype=16, raw=bytes(8)), "bfloat16"),
    "data twice": (OnnxInvalid, bad_tensor(more=long(4, floats(1, 2, 3, 4))), "raw_data and as float_data"),
    "half a float": (OnnxInvalid, bad_tensor(raw=None, more=long(4, bytes(15))), "whole number"),
    "too few floats": (OnnxInvalid, bad_tensor(raw=None, more=long(4, floats(1, 2))), "2 are stored"),
    "floats as integers": (OnnxInvalid, bad_tensor(raw=None, more=long(7, bytes(4))), "float32, but its"),
    "integers that never end": (
        OnnxInvalid,
        bad_tensor(dtype=7, raw=None, more=long(7, b"\xff" * 44)),
        "more than ten bytes",
    ),
    "segments": (OnnxUnsupported, bad_tensor(more=long(3, b"")), "segments"),
    "a place of data that is none": (OnnxInvalid, bad_tensor(more=whole(14, 2)), "data_location is 2"),
    "an input that disagrees": (
        OnnxInvalid,
        model(graph(inputs=[value(), value("w", (3, 2))])),
        "described as [3, 2]",
    ),
    "an input of another type": (
        OnnxInvalid,
        model(graph(inputs=[value(), value("w", (2, 2), 10)])),
        "described as float16",
    ),
    "an input of -1 rows": (OnnxInvalid, model(graph(inputs=[value(dims=(-1, 2))])), "dim_param"),
    # Weights that do not fit their operator.
    "a convolution with a matrix": (OnnxInvalid, bad_node(node("Conv")), "the weight 'w' has the dimensions"),
    "groups that do not divide": (
        OnnxInvalid,
        model(
            graph(
                nodes=[node("Conv", more=attribute(2, whole(3, 3), "group"))],
                tensors=[tensor(dims=(2, 2, 1))],
            )
        ),
        "3 groups",
    ),
    "zero groups": (OnnxInvalid, bad_node(node("Conv", more=attribute(2, b"", "group"))), "'group' is 0"),
    "a norm with two inputs": (OnnxInvalid, bad_node(node("BatchNormalization")), "has 5"),
    "a convolution in float64": (
        OnnxUnsupported,
        model(graph(nodes=[node("Conv")], tensors=[tensor(dims=(1, 2, 1), dtype=11)])),
        "float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_graphs_that_lie(name: str) -> None:
    kind, data, words = CASES[name]
    error = refused(kind, lambda: admit_model(files(data)), words)
    assert error.message.startswith("model.onnx: ")
    assert error.pointer is not None
    assert error.pointer.startswith("model.onnx")


PLACES = {
    "../secret": "no plain path",
    "/etc/passwd": "no plain path",
    "C:\\windows\\x": "no plain path",
    "..\\secret": "no plain path",
    "a/../../secret": "no plain path",
    "./weights.data": "no plain path",
    "\\\\server\\share": "no plain path",
    "file:///etc/passwd": "no plain path",
    "": "no plain path",
    "nul": "no plain path",
    "weights.data\n": "no plain path",
    "x" * 300: "no plain path",
    "other.data": "was not uploaded",
    "model.onnx": "in the ONNX file itself",
    "config.json": "not taken in",
    "weights.pt": "not taken in",
    "code.py": "not taken in",
}


@pytest.mark.parametrize("place", PLACES, ids=ascii)
def test_data_outside_the_files_of_the_model(place: str) -> None:
    data = bad_tensor(raw=None, more=external(location=place))
    others: Files = {"weights.data": BytesSource(bytes(16)), "config.json": BytesSource(b"{}")}
    refused(OnnxInvalid, lambda: admit_model({**files(data), **others}), PLACES[place])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "1"}, "but 15 are stored"),
        ({"offset": "8", "length": "16"}, "end at byte 24"),
        ({"length": "8"}, "but 8 are stored"),
        ({"length": "17"}, "but 17 are stored"),
        ({"offset": "-1"}, "no number of bytes"),
        ({"offset": "0x0"}, "no number of bytes"),
        ({"offset": " 0"}, "no number of bytes"),
        ({"offset": "٣"}, "no number of bytes"),
        ({"offset": "9" * 19}, "no number of bytes"),
        ({"offset": "9" * 18, "length": "16"}, "end at byte"),
        ({"length": ""}, "no number of bytes"),
        ({"basepath": "/"}, "the key 'basepath'"),
    ],
    ids=str,
)
def test_places_inside_of_files_that_lie(entries: dict[str, str], words: str) -> None:
    data = bad_tensor(raw=None, more=external(location="w.data", **entries))
    refused(OnnxInvalid, lambda: admit_model(files(data, w_data=bytes(16))), words)


def test_data_that_are_elsewhere_and_here() -> None:
    for more, words in (
        (external(location="w.data"), "says that its data are in another file"),
        (external(location="w.data").removeprefix(whole(14, 1)), "says that its data are here"),
    ):
        refused(
            OnnxInvalid, lambda more=more: admit_model(files(bad_tensor(more=more), w_data=bytes(16))), words
        )
    twice = bad_tensor(raw=None, more=external(location="w.data") + external(location="w.data")[2:])
    refused(OnnxInvalid, lambda: admit_model(files(twice, w_data=bytes(16))), "twice")


def test_many_tensors_in_the_same_bytes() -> None:
    stored = [tensor(f"w{n}", raw=None, more=external(location="w.data", length="16")) for n in range(3)]
    data = model(graph(tensors=[tensor(), *stored]))
    refused(
        OnnxInvalid, lambda: admit_model(files(data, w_data=bytes(40))), "more bytes together than its 40"
    )


def test_files_that_do_not_belong(tmp_path: Path) -> None:
    data = model()
    cases: list[tuple[type[ModelRejected], Files, str]] = [
        (FileRefused, files(data, other_onnx=data), "one ONNX file"),
        (FileRefused, {"sub/model.onnx": BytesSource(data)}, "in a folder"),
        (FileRefused, {**llama_files(tmp_path / "m"), **files(data)}, "either an ONNX file or"),
        (FileRefused, files(data, model_onnx_data=bytes(16)), "no tensor of model.onnx lies in it"),
        (FileRefused, files(data, code_py=b"x"), "code is never taken in"),
        (PickleRefused, files(data, weights_bin=b"x"), "secateur convert"),
        (PickleRefused, files(b"PK\x03\x04" + bytes(60)), "zip archive"),
        (PickleRefused, files(b"\x80\x04\x95" + bytes(60)), "pickle"),
        (FileRefused, files(b"\x1f\x8b" + bytes(60)), "gzip"),
        (FileRefused, files(b"\x89HDF\r\n\x1a\n"), "HDF5"),
        (FileRefused, {"../model.onnx": BytesSource(data)}, "no valid name"),
        (FileRefused, {"model.pt2": BytesSource(b"PK")}, "secateur convert"),
    ]  # fmt: skip
    for kind, given, words in cases:
        refused(kind, lambda given=given: admit_model(given), words)


def test_a_hundred_thousand_nodes() -> None:
    line = b"".join(
        long(1, node("Relu", [f"v{n}" if n else "x"], [f"v{n + 1}"], name="")) for n in range(MAXIMUM_NODES)
    )
    data = model(graph(more=line))
    source = CountedSource(data)
    refused(OnnxUnsupported, lambda: admit_model({"model.onnx": source}), "100,000 parts", seconds=1)
    assert source.taken <= len(data) + (2 << 20)


def test_a_deep_line_of_nodes_is_settled_without_recursion() -> None:
    count = 20_000
    nodes = [node("Relu", [f"v{n}" if n else "x"], [f"v{n + 1}"], name="") for n in range(count)]
    first = node("Add", ["x", f"v{count}"], ["y"], name="first")
    data = bad_node(first, *nodes)
    refused(OnnxInvalid, lambda: admit_model(files(data)), "comes after it", seconds=2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: model(graph(nodes=[node(f"Op{n}", outputs=[f"y{n}"]) for n in range(501)])),
        lambda: model(graph(inputs=[value(f"x{n}") for n in range(300)])),
        lambda: model(graph(outputs=[value("y")] + [value(f"o{n}") for n in range(300)])),
        lambda: bad_node(node(more=b"".join(attribute(2, b"", f"a{n}") for n in range(300)))),
        lambda: bad_node(node(inputs=["x"] + [""] * 1_000_001)),
        lambda: model(more=b"".join(long(8, long(1, f"d{n}") + whole(2, 1)) for n in range(100))),
        lambda: bad_node(node(more=attribute(7, long(8, varint(1) * 1_000_001)))),
        lambda: bad_node(node(more=attribute(7, long(8, varint(1) * 900_000)) * 2)),
        lambda: bad_tensor(dims=(1,) * 50_000, raw=bytes(4)),
    ],
    ids=[
        "operators", "inputs", "outputs", "attributes", "edges", "domains", "numbers",
        "numbers in all", "dimensions",
    ],
)  # fmt: skip
def test_crowds(build: Callable[[], bytes]) -> None:
    data = build()
    refused(ModelRejected, lambda: admit_model(files(data)), seconds=1)


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "\u202e", "\x1b[31m", "\u200b"], ids=ascii)
def test_names_that_cannot_be_shown(name: str) -> None:
    for data in (
        bad_node(node(name=name)),
        bad_node(node(inputs=[name, "w"])),
        bad_node(node(more=attribute(2, b"", name))),
        bad_node(node(more=long(7, name))),
        model(graph(inputs=[value(name)])),
        model(graph(inputs=[value(dims=(name, 2))])),
        bad_tensor(name=name),
        model(more=long(8, long(1, name) + whole(2, 1))),
    ):
        error = refused(OnnxInvalid, lambda data=data: admit_model(files(data)))
        assert error.message.isprintable()
        assert error.message.isascii()


def test_a_stranger_s_producer_is_shown_plainly() -> None:
    admitted = admit_model(files(model(more=long(2, "evil\x1b[2J\nname"))))
    assert admitted.inspection["producer"] == "evil?[2J?name"


def test_unknown_operators_are_isolated_by_name() -> None:
    made = small_network()
    made.graph.node[2].op_type = "StringSplit"
    made.graph.node[4].domain = "com.microsoft"
    made.opset_import.add(domain="com.microsoft", version=1)
    inspection = admit_model(files(made.SerializeToString())).inspection
    assert inspection["unknown_operators"] == [
        {"operator": "StringSplit", "domain": "ai.onnx", "count": 1, "nodes": ["relu"],
         "reason": "not known to the engine"},
        {
            "operator": "Add",
            "domain": "com.microsoft",
            "count": 1,
            "nodes": ["add"],
            "reason": "of a domain that the engine does not know",
        },
    ]  # fmt: skip
    assert inspection["operators"]["com.microsoft.Add"] == 1
