"""Datasets of images that are damaged, enormous, or lead somewhere else; what is judged before anything
decodes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from compression.errors import DatasetEmpty, DatasetFormatUnknown, DatasetInvalid
from compression.loading.dataset_files import DatasetFacts, admit_dataset
from compression.loading.images import limits, tar_index, zip_index
from compression.loading.images.headers import NotAnImage, image_header
from compression.loading.sources import BytesSource
from tests.pictures import NAMES, encoded, folders, pictures, write_npz, write_parquet, write_tar, write_zip
from tests.security.hostile import CountedSource, refused

IMAGES, LABELS = pictures(6)
PNG = encoded(IMAGES[0])
JPEG = encoded(IMAGES[0], "JPEG")


def admit(data: bytes, name: str) -> DatasetFacts:
    return admit_dataset(name, BytesSource(data))


def zipped(files: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data, **options)
    return stream.getvalue()


def tarred(member: tarfile.TarInfo, data: bytes = b"", format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return PNG[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


def jpeg_claiming(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def overlapping() -> bytes:
    """Two entries of a directory that share one file's bytes."""
    data = zipped({"d/a.png": PNG, "d/b.png": PNG})
    start = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", start + 4)
    return data[: second + 42] + data[start + 42 : start + 46] + data[second + 46 :]


def patched(data: bytes, field: int, value: bytes) -> bytes:
    """A zip with bytes of the first record of its directory replaced."""
    at = data.index(b"PK\x01\x02") + field
    return data[:at] + value + data[at + len(value) :]


GOOD = zipped({"d/no/a.png": PNG, "d/yes/b.jpg": JPEG})


def test_what_is_taken_in(tmp_path: Path) -> None:
    assert admit(GOOD, "a.zip") == DatasetFacts("image", 2, len(GOOD), 0, ["no", "yes"])
    files = folders(IMAGES, LABELS)
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        tar = write_tar(tmp_path / "a.tar", files, format)
        assert admit(tar.read_bytes(), "A.TAR").labels == list(NAMES)
    for packed in (True, False):
        npz = write_npz(tmp_path / "a.npz", IMAGES, LABELS, packed=packed).read_bytes()
        assert (admit(npz, "a.npz").rows, admit(npz, "a.npz").labels) == (6, [0, 1, 2])
        assert admit(write_zip(tmp_path / "b.zip", files, packed=packed).read_bytes(), "b.zip").rows == 6
    table = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, names=NAMES, group=2).read_bytes()
    assert admit(table, "a.parquet") == DatasetFacts("image", 6, len(table), 0, list(NAMES))
    bare = write_parquet(tmp_path / "b.parquet", IMAGES, LABELS, bare=True).read_bytes()
    assert admit(bare, "b.parquet").labels == []
    assert admit(write_parquet(tmp_path / "c.parquet", IMAGES, None).read_bytes(), "c.parquet").labels is None


def test_long_names_and_hidden_files(tmp_path: Path) -> None:
    long = "x" * 150
    files = {f"{long}/no/{'y' * 90}.png": PNG, f"{long}/yes/b.png": PNG, f"{long}/.DS_Store": b"x"}
    files |= {f"__MACOSX/{long}/._a.png": b"x", f"{long}/README.md": b"x"}
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        data = write_tar(tmp_path / "a.tar", files, format).read_bytes()
        assert (admit(data, "a.tar").rows, admit(data, "a.tar").labels) == (2, ["no", "yes"])
    assert admit(zipped(files), "a.zip").labels == ["no", "yes"]


def link(kind: bytes) -> bytes:
    member = tarfile.TarInfo("d/no/a.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return tarred(member)


ARCHIVES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("a way out", "a.zip", lambda: zipped({"../../a.png": PNG}), "no valid name"),
    ("a way out within", "a.zip", lambda: zipped({"d/../../a.png": PNG}), "no valid name"),
    ("an absolute name", "a.zip", lambda: zipped({"/etc/a.png": PNG}), "no valid name"),
    ("backslashes", "a.zip", lambda: zipped({"d\\..\\a.png": PNG}), "no valid name"),
    ("a drive", "a.zip", lambda: zipped({"C:/a.png": PNG}), "no valid name"),
    ("a control character", "a.zip", lambda: zipped({"d/a\x07.png": PNG}), "no valid name"),
    ("a way out of a tar", "a.tar", lambda: tarred(tarfile.TarInfo("../a.png"), PNG), "no valid name"),
    ("a text called png", "a.zip", lambda: zipped({"d/a.png": b"hello" * 20}), "no PNG, JPEG, WebP or BMP"),
    ("a svg called png", "a.zip", lambda: zipped({"d/a.png": b"<svg>" + bytes(50)}), "no PNG"),
    ("a gif called png", "a.zip", lambda: zipped({"d/a.png": b"GIF89a" + bytes(50)}), "no PNG"),
    ("an empty image", "a.zip", lambda: zipped({"d/a.png": b""}), "no PNG"),
    ("half a header", "a.zip", lambda: zipped({"d/a.png": PNG[:20]}), "no complete header"),
    ("a png bomb", "a.zip", lambda: zipped({"d/a.png": png_claiming(60_000, 60_000)}), "pixels"),
    ("a wide png", "a.zip", lambda: zipped({"d/a.png": png_claiming(1, 1 << 30)}), "pixels"),
    ("a png without pixels", "a.zip", lambda: zipped({"d/a.png": png_claiming(0, 5)}), "0 x 5"),
    ("a jpeg bomb", "a.tar", lambda: tarred(tarfile.TarInfo("a.jpg"), jpeg_claiming(65_000, 65_000)),
     "pixels"),
    ("a jpeg without a frame", "a.zip", lambda: zipped({"a.jpg": b"\xff\xd8\xff\xd9" + bytes(8)}),
     "without a frame"),
    ("a jpeg of metadata", "a.zip", lambda: zipped({"a.jpg": b"\xff\xd8" + b"\xff\xe1\xff\xff" * 99}), ""),
    ("an image beside classes", "a.zip", lambda: zipped({"d/a.png": PNG, "d/no/b.png": PNG}),
     "beside the folders"),
    ("encrypted", "a.zip", lambda: patched(GOOD, 8, b"\x01\x00"), "encrypted"),
    ("lzma", "a.zip", lambda: patched(GOOD, 10, b"\x0e\x00"), "unusual way"),
    ("a claim of 4 GB", "a.zip", lambda: patched(GOOD, 24, b"\xf0\xff\xff\xff"), "cannot be"),
    ("another size", "a.zip", lambda: patched(GOOD, 20, b"\xf0\xff\xff\x00"), ""),
    ("overlapping entries", "a.zip", overlapping, "overlaps"),
    ("a link in a zip", "a.zip", lambda: patched(GOOD, 38, b"\x00\x00\xff\xa1"), "a link"),
    ("cut off", "a.zip", lambda: GOOD[:-40], "cut off"),
    ("no zip", "a.zip", lambda: b"hello" * 50, "no zip archive"),
    ("nothing", "a.zip", lambda: b"", "no zip archive"),
    ("a million entries", "a.zip", lambda: GOOD[:-14] + b"\xfe\xff\xfe\xff" + GOOD[-10:], "directory"),
    ("a symbolic link", "a.tar", lambda: link(tarfile.SYMTYPE), "a link"),
    ("a hard link", "a.tar", lambda: link(tarfile.LNKTYPE), "a link"),
    ("a device", "a.tar", lambda: link(tarfile.CHRTYPE), "a link or a device"),
    ("a packed tar", "a.tar", lambda: b"\x1f\x8b\x08" + bytes(2000), "no plain tar"),
    ("a damaged tar", "a.tar", lambda: b"x" * 2048, "no plain tar"),
    ("a tar cut off", "a.tar", lambda: tarred(tarfile.TarInfo("a.png"), PNG * 3)[:1024], "cut off"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "words"), [case[1:] for case in ARCHIVES], ids=[c[0] for c in ARCHIVES]
)
def test_archives(name: str, make: Callable[[], bytes], words: str) -> None:
    refused(DatasetInvalid, lambda: admit(make(), name), words)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 900)), max_size=9), st.integers(1, 400))
def test_what_was_packed_comes_out_in_pieces_of_any_size(parts: list[tuple[bytes, int]], piece: int) -> None:
    content = b"".join(part * times for part, times in parts)
    data = zipped({"a.bin": content})
    source = BytesSource(data)
    entry = zip_index.located("a", source, zip_index.zip_entries("a", source)[0])
    pieces = list(zip_index.unpacked("a", source, entry, piece))
    assert b"".join(pieces) == content
    assert all(len(item) <= piece for item in pieces)
    if content:
        at = entry.offset + entry.stored // 2
        changed = BytesSource(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            # Of what repeats itself, a copy from further back is the same.
            unharmed = b"".join(zip_index.unpacked("a", changed, entry, piece)) == content
        except DatasetInvalid:
            unharmed = False
        if not unharmed:
            refused(DatasetInvalid, lambda: list(zip_index.unpacked("a", changed, entry, piece)), "damaged")


def test_a_tar_header_that_claims_gigabytes() -> None:
    head = bytearray(tarred(tarfile.TarInfo("a.png"), PNG)[:512])
    head[156:157], head[124:136] = b"x", b"77777777777\0"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:]) + 8 * 32)
    source = CountedSource(bytes(head), 1 << 34)
    refused(DatasetInvalid, lambda: admit_dataset("a.tar", source), "no archive of images needs")
    assert source.taken < 4096


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = folders(IMAGES, LABELS)
    for module in (zip_index, tar_index):
        monkeypatch.setattr(module, "MAXIMUM_ENTRIES", 4)
    refused(DatasetInvalid, lambda: admit(zipped(files), "a.zip"), "more than the 4 allowed")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in files:
            archive.addfile(tarfile.TarInfo(name))
    refused(DatasetInvalid, lambda: admit(stream.getvalue(), "a.tar"), "more than the 4 files")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.npz", "a.parquet"])
def test_pickles_and_empty_ones(name: str, tmp_path: Path) -> None:
    refused(DatasetFormatUnknown, lambda: admit(pickle.dumps([1]), name), "pickle")
    empty = {
        "a.zip": zipped({"README": b"x"}),
        "a.tar": write_tar(tmp_path / "a.tar", {"README": b"x"}).read_bytes(),
        "a.npz": npz(images=IMAGES[:0]),
        "a.parquet": write_parquet(tmp_path / "a.parquet", IMAGES[:0], []).read_bytes(),
    }
    refused(DatasetEmpty if name != "a.parquet" else DatasetInvalid, lambda: admit(empty[name], name))


ARRAYS: list[tuple[str, Callable[[], bytes], str]] = [
    ("objects", lambda: npz(images=np.array([{}, 1], dtype=object)), "Python objects"),
    ("labels are objects", lambda: npz(images=IMAGES, labels=np.array([None] * 6)), "Python objects"),
    ("records", lambda: npz(images=np.zeros(3, "u1,u1")), "whole numbers"),
    ("floats", lambda: npz(images=IMAGES / 255.0), "whole numbers"),
    ("int64", lambda: npz(images=IMAGES.astype(np.int64)), "must be uint8"),
    ("fortran order", lambda: npz(images=np.asfortranarray(IMAGES)), "Fortran order"),
    ("no images", lambda: npz(x=IMAGES, y=np.array(LABELS)), "it holds 'x', 'y'"),
    ("two names", lambda: npz(images=IMAGES, images_nhwc=IMAGES), "one array"),
    ("two axes", lambda: npz(images=IMAGES[0, :, :, 0]), "must be [n, h, w, c]"),
    ("four channels", lambda: npz(images=np.zeros((6, 8, 8, 4), np.uint8)), "no axis of 1 or 3"),
    ("both ways", lambda: npz(images=np.zeros((6, 3, 8, 3), np.uint8)), "call it 'images_nhwc'"),
    ("no pixels", lambda: npz(images=np.zeros((6, 0, 8, 3), np.uint8)), "pixels"),
    ("fewer labels", lambda: npz(images=IMAGES, labels=np.array(LABELS[:5])), "6 images"),
    ("labels of two axes", lambda: npz(images=IMAGES, labels=np.zeros((6, 1), int)), "[6, 1]"),
    ("negative labels", lambda: npz(images=IMAGES, labels=np.array([-1] * 6)), "-1"),
    ("a shape that lies", lambda: npz(images=IMAGES).replace(b"(6, 20, 28, 3)", b"(9, 20, 28, 3)"),
     "its header"),
    ("a header that is code", lambda: npz(images=IMAGES).replace(b"'fortran_order'", b"__import__('os')"),
     ""),
    ("no array", lambda: zipped({"images.npy": b"hello" * 30}), "no NumPy array"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in ARRAYS], ids=[case[0] for case in ARRAYS])
def test_arrays(make: Callable[[], bytes], words: str) -> None:
    refused(DatasetInvalid, lambda: admit(make(), "a.npz"), words)


def test_an_array_bomb() -> None:
    """A few kilobytes that claim a terabyte of images."""
    header = (
        str({"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1024, 1024, 1)}).ljust(117) + "\n"
    )
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(1 << 20)
    refused(DatasetInvalid, lambda: admit(zipped({"images.npy": data}), "a.npz"), "but its header tells")


def table(**columns: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def elsewhere() -> bytes:
    """A footer alone, whose columns lie in a file beside it."""
    stream = io.BytesIO(table(image=BYTES))
    metadata = parquet.read_metadata(stream)
    metadata.set_file_path("../../etc/other.parquet")
    other = io.BytesIO()
    metadata.write_metadata_file(other)
    return other.getvalue()


BYTES = [PNG] * 3
TABLES: list[tuple[str, Callable[[], bytes], str]] = [
    ("text", lambda: table(text=["a", "b"]), "must have one column 'image'"),
    ("images as text", lambda: table(image=["a.png", "b.png"]), "must have one column 'image'"),
    ("two columns of bytes", lambda: table(a=BYTES, b=BYTES), "'a', 'b'"),
    ("lists of images", lambda: table(image=[[PNG], [PNG]]), "must have one column"),
    ("labels are floats", lambda: table(image=BYTES, label=[0.5, 1.0, 1.5]), "whole numbers or strings"),
    ("labels are lists", lambda: table(image=BYTES, label=[[0], [1], [2]]), "whole numbers or strings"),
    ("labels by another name", lambda: table(image=BYTES, fine=[0, 1, 2]), "no column 'label'"),
    ("two labels", lambda: table(image=BYTES, label=[0, 1, 2], labels=[0, 1, 2]), "keep one"),
    ("no parquet", lambda: b"PAR1" + b"x" * 100, "no parquet file"),
    ("encrypted", lambda: table(image=BYTES)[:-4] + b"PARE", "encrypted"),
    ("cut off", lambda: table(image=BYTES)[:-30], "no parquet file"),
    ("a footer too long", lambda: table(image=BYTES)[:-8] + b"\xff\xff\xff\x7fPAR1", "its footer claims"),
    ("a footer of zeros", lambda: b"PAR1" + bytes(100) + b"\x64\x00\x00\x00PAR1", "footer is damaged"),
    ("a footer of structures", lambda: b"PAR1" + b"\x1c" * 100 + b"\x64\x00\x00\x00PAR1",
     "footer is damaged"),
    ("columns in another file", lambda: elsewhere(), "names another file"),
    ("a footer of lists", lambda: b"PAR1" + b"\x19" * 100 + b"\x64\x00\x00\x00PAR1", "footer is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_tables(make: Callable[[], bytes], words: str) -> None:
    refused(DatasetInvalid, lambda: admit(make(), "a.parquet"), words)


def test_a_footer_that_lies_about_rows() -> None:
    """The number of rows of the whole file, one varint of the footer, changed."""
    data = table(image=[PNG] * 50, label=[0] * 50)
    at = data.rindex(b"\x16\x64\x19")  # field 3: 50 in zigzag, then the list of row groups
    refused(DatasetInvalid, lambda: admit(data[: at + 1] + b"\x66" + data[at + 2 :], "a.parquet"), "51 rows")


def test_row_groups_that_no_runner_could_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.loading.images.parquet.MAXIMUM_GROUP", 1000)
    refused(DatasetInvalid, lambda: admit(table(image=BYTES), "a.parquet"), "write groups of at most 1,000")


def test_little_is_read_of_a_large_table(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "a.parquet", *pictures(400), group=400).read_bytes()
    source = CountedSource(data)
    assert admit_dataset("a.parquet", source).rows == 400
    assert source.taken < len(data) / 50


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"BM", b""]),
)
def test_fuzz_headers(data: bytes, magic: bytes) -> None:
    try:
        header = image_header(lambda count: (magic + data)[:count])
        assert 0 < header.width * header.height <= limits.MAXIMUM_PIXELS
    except NotAnImage as error:
        assert str(error)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("lossless", [True, False])
def test_headers_tell_what_is_decoded(format: str, lossless: bool) -> None:
    from PIL import Image

    stream = io.BytesIO()
    options = (
        {"lossless": lossless} if format == "WEBP" else {"progressive": lossless} if format == "JPEG" else {}
    )
    Image.fromarray(IMAGES[0]).save(stream, format, **options)
    header = image_header(lambda count: stream.getvalue()[:count])
    assert (header.format, header.width, header.height) == (format, 28, 20)


BASES = {
    "a.zip": GOOD,
    "a.tar": tarred(tarfile.TarInfo("d/a.png"), PNG),
    "a.npz": npz(images=IMAGES, labels=np.array(LABELS)),
    "a.parquet": table(image=[{"bytes": PNG, "path": None}] * 3, label=[0, 1, 2]),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(BASES)), st.data())
def test_fuzz_containers(name: str, data: st.DataObject) -> None:
    base = bytearray(BASES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        base[-data.draw(st.integers(1, min(len(base), 600)))] = data.draw(st.integers(0, 255))
    try:
        json.dumps(admit(bytes(base), name).to_json())
    except DatasetInvalid as error:
        assert error.message.endswith(".")
