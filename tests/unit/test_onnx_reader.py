"""The reader of ONNX files against the onnx package: the same nodes, tensors and dimensions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.loading.onnx.admission import read_structure
from compression.loading.onnx.operators import CONTROL_FLOW, KNOWN
from compression.loading.onnx.parts import DTYPES, ITEM_SIZES, OTHER_DTYPES, Graph, Tensor
from compression.loading.onnx.wire import Malformed, Reader, Span
from compression.loading.sources import BytesSource, FileSource, folder_sources
from tests.conftest import SHARED
from tests.onnx_wire import floats, graph, long, model, small_network, tensor, varint, whole
from tests.security.hostile import CountedSource


def read(files: dict[str, FileSource] | bytes, file: str = "model.onnx") -> Graph:
    if isinstance(files, bytes):
        files = {file: BytesSource(files)}
    return read_structure(files, file)[1]


def assert_same(files: dict[str, FileSource], file: str, wanted: onnx.ModelProto) -> None:
    """`wanted` is the same model, read by the onnx package with all data."""
    found = read(files, file)
    theirs = wanted.graph
    assert [(n.name, n.operator, n.inputs, n.outputs) for n in found.nodes] == [
        (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    for ours, node in zip(found.nodes, theirs.node, strict=True):
        assert ours.attributes.keys() == {each.name for each in node.attribute}
        for each in node.attribute:
            value = helper.get_attribute_value(each)
            mine = ours.attributes[each.name].value
            assert ours.attributes[each.name].type == onnx.AttributeProto.AttributeType.Name(each.type)
            if isinstance(mine, Tensor):
                assert np.array_equal(content(mine, files), numpy_helper.to_array(value))
            else:
                assert mine == (tuple(value) if isinstance(value, list) else value)
    assert list(found.initializers) == [each.name for each in theirs.initializer]
    for each in theirs.initializer:
        mine = found.initializers[each.name]
        array = numpy_helper.to_array(each)
        assert (mine.dims, mine.dtype, mine.elements) == (array.shape, str(array.dtype), array.size)
        assert np.array_equal(content(mine, files), array)
    for ends, others in ((found.inputs, theirs.input), (found.outputs, theirs.output)):
        assert [end.name for end in ends] == [
            each.name for each in others if each.name not in found.initializers or others is theirs.output
        ]


def content(tensor: Tensor, files: dict[str, FileSource]) -> np.ndarray:
    """The elements of a tensor by what the reader says of their place."""
    data = files[tensor.file].read(tensor.offset, tensor.length)
    dtype = np.dtype(tensor.dtype)
    if tensor.storage == "raw":
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(tensor.dims)
    if tensor.dtype in ("float32", "float64"):
        return np.frombuffer(data, dtype).reshape(tensor.dims)
    numbers, place, shift = [], 0, 0
    for byte in data:
        place |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(place)
            place = shift = 0
    if tensor.dtype == "float16":
        return np.array(numbers, np.uint16).view(np.float16).reshape(tensor.dims)
    return np.array(numbers, np.uint64).astype(np.int64).astype(dtype).reshape(tensor.dims)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["resnet20-cifar10", "resnet56-cifar10"])
@pytest.mark.parametrize("file", ["model.onnx", "model-conv-shortcut.onnx"])
def test_real_files(name: str, file: str) -> None:
    folder = SHARED / "models" / name
    assert_same(folder_sources(folder), file, onnx.load(str(folder / file)))


def test_a_small_file_and_one_with_external_data(tmp_path: Path) -> None:
    plain, apart = tmp_path / "plain", tmp_path / "apart"
    plain.mkdir()
    apart.mkdir()
    small_network(plain / "model.onnx")
    assert_same(folder_sources(plain), "model.onnx", onnx.load(str(plain / "model.onnx")))
    small_network(
        apart / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    files = folder_sources(apart)
    assert_same(files, "model.onnx", onnx.load(str(apart / "model.onnx")))
    assert read(files).external == {"model.onnx.data"}


@pytest.mark.parametrize("raw", [True, False])
def test_every_type_in_both_storages(raw: bool) -> None:
    arrays = [
        np.array([[1, 0, 3], [100, 127, 2]]).astype(dtype) for dtype in DTYPES.values() for _ in range(1)
    ]
    stored = [
        numpy_helper.from_array(array, str(array.dtype))
        if raw
        else helper.make_tensor(str(array.dtype), number, array.shape, array.flatten().tolist())
        for number, array in zip(DTYPES, arrays, strict=True)
    ]
    if not raw:
        stored.append(helper.make_tensor("negative", TensorProto.INT64, [2], [-1, -(2**63)]))
        stored.append(helper.make_tensor("small negative", TensorProto.INT8, [2], [-1, -128]))
    stored += [
        helper.make_tensor("scalar", TensorProto.FLOAT, [], [3.0]),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"),
    ]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    made = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], stored),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=7,
    )
    data = made.SerializeToString()
    assert_same({"m.onnx": BytesSource(data)}, "m.onnx", onnx.load_from_string(data))


def test_every_kind_of_attribute() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    settings = {
        "a_float": 0.5, "an_int": -3, "text": "word", "a_tensor": numpy_helper.from_array(array),
        "floats": [1.0, -2.0], "ints": [-1, 2**40], "strings": ["a", "b"],
    }  # fmt: skip
    made = onnx.load_from_string(model())
    made.graph.node[0].attribute.extend(helper.make_attribute(*item) for item in settings.items())
    data = made.SerializeToString()
    assert_same({"m.onnx": BytesSource(data)}, "m.onnx", made)
    tensors = helper.make_attribute("tensors", [numpy_helper.from_array(array)] * 2)
    made.graph.node[0].attribute.append(tensors)
    assert read(made.SerializeToString()).nodes[0].attributes["tensors"].value is None


def test_our_writer_writes_what_the_package_reads() -> None:
    made = onnx.load_from_string(model(graph(tensors=[tensor(packed=True)])))
    assert made.graph.initializer[0].dims == [2, 2]
    assert read(made.SerializeToString()).nodes == read(model()).nodes
    packed = read(model(graph(tensors=[tensor(packed=True)])))
    assert packed.initializers["w"].dims == (2, 2)


def test_initializers_that_are_also_inputs_are_not_fed() -> None:
    made = small_network()
    for each in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    data = made.SerializeToString()
    assert_same({"m.onnx": BytesSource(data)}, "m.onnx", made)
    assert [value.name for value in read(data).inputs] == ["image"]


def test_free_dimensions() -> None:
    found = read(small_network().SerializeToString())
    assert found.inputs[0].shape == ("batch", 3, 8, 8)
    unknown = helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 3, 8, 8])
    made = small_network()
    made.graph.input[0].CopyFrom(unknown)
    assert read(made.SerializeToString()).inputs[0].shape == (None, 3, 8, 8)


def test_documentation_and_metadata_are_passed_over() -> None:
    made = small_network()
    before = read(made.SerializeToString()).nodes
    for node in made.graph.node:
        node.doc_string = "trace\n" * 100_000
        node.metadata_props.add(key="stack", value="x" * 200_000)
    made.graph.doc_string = "d" * 3_000_000
    source = CountedSource(made.SerializeToString())
    assert read({"model.onnx": source}).nodes == before
    assert source.size > 9_000_000
    assert source.taken < 1_500_000


def test_weights_are_not_read() -> None:
    """Twenty tensors of 1 MB: what is read is what lies between them."""
    size = 1 << 20
    tensors = [tensor(f"w{n}", (size // 4,), raw=bytes(size)) for n in range(20)]
    source = CountedSource(model(graph(tensors=[tensor(), *tensors])))
    found = read({"model.onnx": source})
    assert len(found.initializers) == 21
    assert source.taken < source.size / 10


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63 - 1, -1, -(2**63)])
def test_varints(value: int) -> None:
    data = whole(3, value)
    [(number, wire, found)] = Reader(BytesSource(data)).fields(Span(0, len(data)))
    assert (number, wire) == (3, 0)
    assert found == value & (2**64 - 1)


@pytest.mark.parametrize("count", [0, 1, 9, 50_000])
def test_counted_varints(count: int) -> None:
    generator = np.random.default_rng(count)
    numbers = [int(each) for each in generator.integers(0, 2**63, count) >> generator.integers(0, 63, count)]
    data = b"".join(map(varint, numbers))
    assert Reader(BytesSource(data)).count_varints(Span(0, len(data))) == count
    with pytest.raises(Malformed):
        Reader(BytesSource(data + b"\x80")).count_varints(Span(0, len(data) + 1))
    with pytest.raises(Malformed):
        bad = data + b"\xff" * 10 + b"\x00"
        Reader(BytesSource(bad)).count_varints(Span(0, len(bad)))


def test_our_tables_agree_with_the_package() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert names >= KNOWN
    assert names >= CONTROL_FLOW
    assert not KNOWN & CONTROL_FLOW
    numbers = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
    assert numbers == DTYPES.keys() | OTHER_DTYPES.keys()
    for number, name in DTYPES.items():
        dtype = helper.tensor_dtype_to_np_dtype(number)
        assert (str(dtype), dtype.itemsize) == (name, ITEM_SIZES[name])


def test_fields_have_the_numbers_of_the_package() -> None:
    from compression.loading.onnx import schema

    pairs = {
        "ModelProto": schema.MODEL, "GraphProto": schema.GRAPH, "NodeProto": schema.NODE,
        "AttributeProto": schema.ATTRIBUTE, "TensorProto": schema.TENSOR, "ValueInfoProto": schema.VALUE,
        "TypeProto": schema.TYPE, "TensorShapeProto": schema.SHAPE, "OperatorSetIdProto": schema.OPERATOR_SET,
        "StringStringEntryProto": schema.ENTRY,
    }  # fmt: skip
    for name, table in pairs.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields
        assert {each.number: each.name for each in fields} == {n: each.name for n, each in table.items()}, (
            name
        )
        for each in fields:
            # What is always packed into one field comes once.
            once = each.name.endswith("_data") and each.name not in ("string_data", "external_data")
            assert table[each.number].repeated == (each.is_repeated and not once), (name, each.name)


def test_float_data_of_one_tensor() -> None:
    stored = tensor(dims=(2, 2), raw=None, more=long(4, floats(1, 2, 3, 4)))
    found = read(model(graph(tensors=[stored]))).initializers["w"]
    assert (found.storage, found.length, math.prod(found.dims)) == ("packed", 16, 4)
