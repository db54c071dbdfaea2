"""Reads the header of a safetensors file, trusting nothing in it. No torch.

Stricter than the library: at most 32 MiB of header and 200,000 tensors, plain names, no empty tensors, no
metadata above 64 KiB, and the tensors' bytes must follow each other from 0 to the end of the file without a
gap or an overlap. Format: 8 bytes little-endian header length, a JSON object, the data.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from compression.errors import SafetensorsInvalid
from compression.loading.sources import FileSource

MAXIMUM_HEADER = 32 << 20
MAXIMUM_TENSORS = 200_000
MAXIMUM_METADATA = 64 << 10
MAXIMUM_DIMENSIONS = 8
MAXIMUM_ELEMENTS = 1 << 48

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,256}", re.ASCII)
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One stored tensor: `dtype` is the format's code (F32, BF16, F16, ...), `file` the file that holds it,
    and
    `offsets` the absolute positions in that file of its first byte and of the byte after its last."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    offsets: tuple[int, int]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes it takes in the file."""
        return self.offsets[1] - self.offsets[0]


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says it holds. `bytes` counts the header with its length field."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    bytes: int


class _Broken(ValueError):
    pass


def read_header(source: FileSource, file: str, *, maximum: int = MAXIMUM_HEADER) -> Header:
    """Reads and checks the header. `file` is the file's path inside the model, for messages and
    `TensorHeader.file`;
    `maximum` limits the bytes of the header. Raises SafetensorsInvalid."""

    def refuse(what: str) -> NoReturn:
        raise SafetensorsInvalid(f"{file}: {what}.", pointer=file)

    if source.size < 8:
        refuse(f"the file has {source.size} bytes, too few for a safetensors file; upload it again")
    length = int.from_bytes(_exactly(source, 0, 8, refuse), "little")
    if length > maximum:
        refuse(
            f"the header would be {length:,} bytes, more than the {maximum:,} allowed; "
            "the file is damaged or no safetensors file"
        )
    if 8 + length > source.size:
        refuse(
            f"the header should be {length:,} bytes, but the file ends after {source.size:,}; upload it again"
        )
    if length < 2:
        refuse("the header is empty")
    raw = _exactly(source, 8, length, refuse)
    try:
        entries = _parse(raw)
    except _Broken as error:
        refuse(str(error))
    metadata = entries.pop(_METADATA, None)
    if isinstance(metadata, tuple):
        refuse(f"{_METADATA} describes a tensor")
    tensors: dict[str, TensorHeader] = {}
    for name, entry in entries.items():
        if not isinstance(entry, tuple):
            refuse(f"the entry of {name[:80]!r} is not an object with dtype, shape and data_offsets")
        tensors[name] = _tensor(name, entry, file, 8 + length, refuse)
    if not tensors:
        refuse("the file holds no tensors")
    _contiguous(tensors, 8 + length, source.size, refuse)
    return Header(tensors, metadata or {}, 8 + length)


def _exactly(source: FileSource, offset: int, length: int, refuse: Callable[[str], NoReturn]) -> bytes:
    data = source.read(offset, length)
    if len(data) != length:
        refuse(f"only {offset + len(data):,} bytes of it could be read")
    return data


def _parse(raw: bytes) -> dict[str, Any]:
    """The header's entries: a tensor as a (dtype, shape, offsets) tuple, the metadata as a dict. Raises
    _Broken.

    Counting first, and inside the hook, stops a header before its objects fill the memory.
    """
    if not raw.startswith(b"{"):
        raise _Broken("the header does not begin with '{'; the file is damaged or no safetensors file")
    described = raw.count(b'"data_offsets"')
    if described > MAXIMUM_TENSORS:
        raise _Broken(f"the header lists more than {MAXIMUM_TENSORS:,} tensors")
    # Millions of empty lists fit into the bytes that are allowed, and each would take twenty times its text.
    if (
        raw.count(b"[") > 4 * described + MAXIMUM_METADATA
        or raw.count(b",") > 16 * described + MAXIMUM_METADATA
    ):
        raise _Broken("the header holds far more than the dtype, shape and data_offsets of its tensors")
    count = 0

    def gather(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal count
        count += 1
        if count > MAXIMUM_TENSORS + 2:
            raise _Broken(f"the header lists more than {MAXIMUM_TENSORS:,} tensors")
        gathered = dict(pairs)
        if len(gathered) != len(pairs):
            raise _Broken(f"the header holds {_twice(pairs)[:80]!r} twice")
        if gathered.keys() == {"dtype", "shape", "data_offsets"}:
            return (gathered["dtype"], gathered["shape"], gathered["data_offsets"])
        return gathered

    def constant(name: str) -> NoReturn:
        raise _Broken(f"the header holds the number {name}")

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=gather, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise _Broken(f"the header is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise _Broken("the header is nested too deeply") from None
    except _Broken:
        raise
    except ValueError as error:
        raise _Broken(f"the header is not valid JSON ({str(error)[:120]})") from None
    if not isinstance(entries, dict):
        raise _Broken("the header is not a JSON object of tensors")
    _check_metadata(entries.get(_METADATA, {}))
    return entries


def _twice(pairs: list[tuple[str, Any]]) -> str:
    return next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Broken(f"{_METADATA} must be an object of strings")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > MAXIMUM_METADATA:
        raise _Broken(f"{_METADATA} has {size:,} characters, more than the {MAXIMUM_METADATA:,} allowed")


def _tensor(
    name: str, entry: tuple[Any, Any, Any], file: str, start: int, refuse: Callable[[str], NoReturn]
) -> TensorHeader:
    shown = repr(name[:80])
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
        refuse(f"{shown} is no name for a tensor: up to 256 letters, digits, '_', '.', '-' and '/', no '..'")
    dtype, shape, offsets = entry
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        refuse(f"{shown} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAXIMUM_DIMENSIONS or not all(map(_count, shape)):
        refuse(
            f"{shown} has a bad shape: at most {MAXIMUM_DIMENSIONS} dimensions, each a whole number from 0 on"
        )
    if 0 in shape:
        refuse(f"{shown} is empty (shape {shape}); remove it from the file")
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > MAXIMUM_ELEMENTS:
            refuse(f"{shown} has an impossible shape: more than {MAXIMUM_ELEMENTS:,} elements")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_count, offsets)):
        refuse(f"{shown} has bad data_offsets: two whole numbers from 0 on are needed")
    begin, end = offsets
    if begin > end:
        refuse(f"{shown} ends before it begins (data_offsets {begin}, {end})")
    if end - begin != elements * ITEM_SIZES[dtype]:
        refuse(
            f"{shown} should take {elements * ITEM_SIZES[dtype]:,} bytes (dtype {dtype}, shape {shape}), "
            f"but its data_offsets span {end - begin:,}"
        )
    return TensorHeader(dtype, tuple(shape), file, (start + begin, start + end))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _contiguous(
    tensors: dict[str, TensorHeader], start: int, size: int, refuse: Callable[[str], NoReturn]
) -> None:
    position = start
    before = ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offsets):
        begin, end = tensor.offsets
        if begin < position:
            refuse(f"the bytes of {name[:80]!r} overlap those of {before[:80]!r}")
        if begin > position:
            refuse(f"{begin - position:,} bytes before {name[:80]!r} belong to no tensor")
        position, before = end, name
    if position > size:
        refuse(f"its tensors need {position:,} bytes, but the file ends after {size:,}; upload it again")
    if position < size:
        refuse(f"{size - position:,} bytes at its end belong to no tensor")
