"""Malformed and malicious safetensors files."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compression.errors import ModelRejected, PickleRefused, SafetensorsInvalid
from compression.loading.safetensors_header import MAXIMUM_HEADER, MAXIMUM_TENSORS, read_header
from compression.loading.sources import BytesSource
from tests.security.hostile import CountedSource, entry, llama_files, model_refused, refused, safetensors

GOOD = {"a": entry(0, 16), "b": entry(16, 24)}
DATA = bytes(24)


def broken(data: bytes, words: str = "") -> None:
    refused(SafetensorsInvalid, lambda: read_header(BytesSource(data), "model.safetensors"), words)


def test_a_good_file_is_read() -> None:
    header = read_header(BytesSource(safetensors(GOOD, DATA)), "model.safetensors")
    assert header.tensors["b"].shape == (2,)
    assert header.tensors["b"].offsets == (header.bytes + 16, header.bytes + 24)


def test_tensors_may_be_listed_in_any_order() -> None:
    header = {"b": entry(16, 24), "__metadata__": {"format": "pt"}, "a": entry(0, 16)}
    assert read_header(BytesSource(safetensors(header, DATA)), "x").metadata == {"format": "pt"}


def test_scalars_are_tensors() -> None:
    header = read_header(BytesSource(safetensors({"a": entry(0, 4, [])}, bytes(4))), "x")
    assert header.tensors["a"].elements == 1


TRUNCATED = safetensors(GOOD, DATA)


@pytest.mark.parametrize("size", sorted({*range(0, len(TRUNCATED), 7), 1, 7, 8, 9, len(TRUNCATED) - 1}))
def test_truncated_files(size: int) -> None:
    broken(TRUNCATED[:size])


HEADERS: list[tuple[str, Any, bytes, str]] = [
    ("no object", [], b"", "begin"),
    ("a string", b'"abc"', b"", "begin"),
    ("empty object", {}, b"", "no tensors"),
    ("only metadata", {"__metadata__": {}}, b"", "no tensors"),
    ("not JSON", b"{nonsense", b"", "not valid JSON"),
    ("leading space", b' {"a": 1}', b"", "begin"),
    ("trailing text", json.dumps(GOOD).encode() + b"x", DATA, "not valid JSON"),
    ("not UTF-8", b'{"\xff\xfe": 1}', b"", "not UTF-8"),
    ("UTF-16", '{"a": 1}'.encode("utf-16"), b"", "begin"),
    ("a million brackets", b'{"a": ' + b"[" * 1_000_000, b"", "far more"),
    ("deep brackets", b'{"a": ' + b"[" * 60_000, b"", "nested too deeply"),
    ("a million objects", b'{"a": ' * 1_000_000, b"", "nested too deeply"),
    ("millions of lists", b'{"a": [' + b"[]," * 5_000_000 + b"1]}", b"", "far more"),
    ("millions of numbers", b'{"a": [' + b"1.5," * 5_000_000 + b"1]}", b"", "far more"),
    ("NaN", b'{"a": NaN}', b"", "NaN"),
    ("digits without end", b'{"a": ' + b"9" * 100_000 + b"}", b"", ""),
    ("duplicate tensor", b'{"a": {}, "a": {}}', b"", "'a' twice"),
    (
        "duplicate key inside",
        b'{"a": {"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "twice",
    ),
    ("a number as entry", {"a": 3}, b"", "not an object"),
    ("a list as entry", {"a": []}, b"", "not an object"),
    ("missing offsets", {"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "data_offsets"),
    ("extra key", {"a": {**entry(0, 4), "code": "x"}}, bytes(4), "not an object with"),
    (
        "flat header",
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        bytes(4),
        "not a JSON object of tensors",
    ),
    ("unknown dtype", {"a": entry(0, 4, [1], "F31")}, bytes(4), "unknown dtype"),
    ("dtype of another kind", {"a": entry(0, 4, [1], ["F32"])}, bytes(4), "unknown dtype"),
    ("shape no list", {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, bytes(4), "bad shape"),
    ("negative dimension", {"a": entry(0, 4, [-1])}, bytes(4), "bad shape"),
    ("fractional dimension", {"a": entry(0, 4, [1.0])}, bytes(4), "bad shape"),
    ("true as dimension", {"a": entry(0, 4, [True])}, bytes(4), "bad shape"),
    ("text as dimension", {"a": entry(0, 4, ["1"])}, bytes(4), "bad shape"),
    ("nine dimensions", {"a": entry(0, 4, [1] * 9)}, bytes(4), "bad shape"),
    ("overflowing shape", {"a": entry(0, 4, [1 << 32, 1 << 32])}, bytes(4), "impossible shape"),
    (
        "shape that wraps to the right size",
        {"a": entry(0, 4, [(1 << 62) + 1, 4])},
        bytes(4),
        "impossible shape",
    ),
    ("huge dimension", {"a": entry(0, 4, [10**30])}, bytes(4), "bad shape"),
    ("zero-size tensor", {"a": entry(0, 0, [0]), "b": entry(0, 4)}, bytes(4), "is empty"),
    (
        "offsets no list",
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}},
        bytes(4),
        "bad data_offsets",
    ),
    (
        "three offsets",
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
        bytes(4),
        "bad data_offsets",
    ),
    ("negative offset", {"a": entry(-4, 0, [1])}, bytes(4), "bad data_offsets"),
    (
        "fractional offset",
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}},
        bytes(4),
        "bad data",
    ),
    ("reversed offsets", {"a": entry(4, 0, [1])}, bytes(4), "ends before it begins"),
    ("offset beyond 63 bits", {"a": entry(0, 1 << 63, [1])}, bytes(4), "bad data_offsets"),
    ("size differs from shape", {"a": entry(0, 8, [1])}, bytes(8), "should take 4 bytes"),
    ("overlap", {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlap"),
    ("the same bytes twice", {"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlap"),
    ("a hole", {"a": entry(0, 8), "b": entry(12, 16)}, bytes(16), "belong to no tensor"),
    ("a hole at the start", {"a": entry(4, 8)}, bytes(8), "belong to no tensor"),
    ("bytes left over", {"a": entry(0, 8)}, bytes(9), "at its end"),
    ("beyond the end", {"a": entry(0, 8)}, bytes(7), "ends after"),
    ("metadata no object", {"__metadata__": [], **GOOD}, DATA, "__metadata__"),
    ("metadata with numbers", {"__metadata__": {"a": 1}, **GOOD}, DATA, "__metadata__"),
    ("metadata as a tensor", {"__metadata__": entry(0, 4), "a": entry(4, 8)}, bytes(8), "__metadata__"),
    ("much metadata", {"__metadata__": {"a": "x" * 70_000}, **GOOD}, DATA, "characters"),
    ("name with traversal", {"../../etc/passwd": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("absolute name", {"/etc/passwd": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("name with NUL", {"a\x00b": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("name with a newline", {"a\nb": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("name in Cyrillic", {"mоdel": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("half a surrogate", {"\ud800": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("empty name", {"": entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("long name", {"a" * 257: entry(0, 4)}, bytes(4), "no name for a tensor"),
    ("markup as a name", {"<script>": entry(0, 4)}, bytes(4), "no name for a tensor"),
]


@pytest.mark.parametrize(
    ("header", "data", "words"), [case[1:] for case in HEADERS], ids=[case[0] for case in HEADERS]
)
def test_malformed_headers(header: Any, data: bytes, words: str) -> None:
    broken(safetensors(header, data), words)


@pytest.mark.parametrize(
    "length", [0, 1, MAXIMUM_HEADER + 1, 100_000_000, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
)
def test_lies_about_the_length(length: int) -> None:
    broken(safetensors(GOOD, DATA, length=length))


def test_a_header_of_60_megabytes_is_not_even_read() -> None:
    source = CountedSource(safetensors(b"{", length=60_000_000), size=200_000_000)
    refused(
        SafetensorsInvalid,
        lambda: read_header(source, "model.safetensors"),
        "more than the 33,554,432 allowed",
    )
    assert source.taken == 8


CROWD = """
import resource, sys
from compression.errors import SafetensorsInvalid
from compression.loading.safetensors_header import read_header
from compression.loading.sources import BytesSource
names = ('"%x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}' % index for index in range(550_000))
raw = ("{" + ",".join(names) + "}").encode()
data = len(raw).to_bytes(8, "little") + raw + b"x"
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    read_header(BytesSource(data), "model.safetensors")
except SafetensorsInvalid as error:
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) // 1024, error.message)
"""


def test_too_many_tensors_stop_early() -> None:
    """Tiny entries for far more tensors than allowed, within the allowed bytes of a header."""
    found = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=True).stdout
    seconds, megabytes, message = found.split(maxsplit=2)
    assert f"more than {MAXIMUM_TENSORS:,} tensors" in message
    assert float(seconds) < 5
    assert int(megabytes) < 300


def test_shards_share_one_allowance(tmp_path: Path) -> None:
    """Each shard would do alone; together their headers are too large."""
    files = llama_files(tmp_path, shards=3)
    names = sorted(name for name in files if name.endswith(".safetensors"))
    for name in names:
        source = files[name]
        data = source.read(0, source.size)
        length = int.from_bytes(data[:8], "little")
        padded = data[8 : 8 + length].rstrip() + b" " * (12 << 20)
        files[name] = BytesSource(len(padded).to_bytes(8, "little") + padded + data[8 + length :])
    model_refused(SafetensorsInvalid, files, "allowed")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def torch_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


PICKLES = {
    **{
        f"protocol {protocol}": pickle.dumps(Bomb(), protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "torch archive": torch_archive(),
}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "weights.pt", "model.pth", "x.ckpt", "a.pkl"]
)
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_whatever_they_are_called(kind: str, name: str, tmp_path: Path) -> None:
    files = llama_files(tmp_path)
    if name == "model.safetensors":
        del files[name]
    error = model_refused(PickleRefused, {**files, name: BytesSource(PICKLES[kind])}, "secateur convert")
    assert error.pointer == name


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "vocab.txt", "README.md", "secateur/manifest.json"]
)
def test_pickles_that_pose_as_text(name: str, tmp_path: Path) -> None:
    model_refused(PickleRefused, {**llama_files(tmp_path), name: BytesSource(PICKLES["protocol 4"])}, name)


def test_a_source_that_ends_early() -> None:
    """The store says that the file is longer than what it gives."""
    whole = safetensors(GOOD, DATA)
    for kept in (4, 8, 40):
        source = CountedSource(whole[:kept], size=len(whole))
        refused(SafetensorsInvalid, lambda source=source: read_header(source, "x"), "could be read")


def check(data: bytes) -> None:
    """Our reader refuses, or the library agrees on every tensor."""
    from safetensors import SafetensorError, deserialize

    try:
        header = read_header(BytesSource(data), "model.safetensors")
    except SafetensorsInvalid as error:
        assert error.message.endswith(".")
        return
    try:
        tensors = dict(deserialize(data))
    except SafetensorError as error:  # pragma: no cover
        pytest.fail(f"accepted what the library refuses: {error}")
    assert tensors.keys() == header.tensors.keys()
    for name, tensor in header.tensors.items():
        assert list(tensor.shape) == tensors[name]["shape"]
        assert data[slice(*tensor.offsets)] == bytes(tensors[name]["data"])


NUMBERS = st.integers(-2, 40) | st.sampled_from([1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 10**25])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "U8", "F64", "F4", "bool", "", 3]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    },
    optional={"extra": st.integers()},
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4), lambda x: st.lists(x, max_size=3)
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "__metadata__", "..", "é"]), ENTRIES | ANYTHING, max_size=4
    ),
    st.binary(max_size=64),
)
def test_fuzz_structured(header: dict[str, Any], data: bytes) -> None:
    check(safetensors(header, data))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1)])),
        min_size=1,
        max_size=5,
    )
)
def test_fuzz_good_files(parts: list[tuple[int, tuple[str, int]]]) -> None:
    header, position = {}, 0
    for index, (count, (dtype, size)) in enumerate(parts):
        header[f"t{index}"] = entry(position, position + count * size, [count], dtype)
        position += count * size
    data = safetensors(header, bytes(position))
    assert len(read_header(BytesSource(data), "x").tensors) == len(parts)
    check(data)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(TRUNCATED) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_fuzz_mutations(position: int, piece: bytes, insert: bool) -> None:
    after = position if insert else position + len(piece)
    check(TRUNCATED[:position] + piece + TRUNCATED[after:])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x02" + bytes(7) + b"{}")
def test_fuzz_bytes(data: bytes) -> None:
    check(data)


def test_no_other_errors_than_ours(tmp_path: Path) -> None:
    """Every single byte of a real header, flipped."""
    files = llama_files(tmp_path, layers=1)
    source = files["model.safetensors"]
    data = bytearray(source.read(0, source.size))
    length = int.from_bytes(data[:8], "little")
    for position in range(0, 8 + length, 13):
        changed = bytearray(data)
        changed[position] ^= 0xFF
        try:
            read_header(BytesSource(bytes(changed)), "model.safetensors")
        except ModelRejected as error:
            assert error.pointer == "model.safetensors"
