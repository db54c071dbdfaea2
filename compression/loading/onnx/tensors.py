"""Reads what a tensor of an ONNX file says of itself, and where its data lie; the data are passed over."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from compression.errors import FileRefused
from compression.loading.file_kinds import FORBIDDEN_ENDINGS, check_path
from compression.loading.onnx.parts import (
    DTYPES,
    ITEM_SIZES,
    MAXIMUM_ELEMENTS,
    MAXIMUM_RANK,
    OTHER_DTYPES,
    Tensor,
    Unsupported,
    shown,
)
from compression.loading.onnx.schema import ENTRY, TENSOR
from compression.loading.onnx.wire import Malformed, Reader, Span

_FIELDS = {
    "float_data": ("float32",),
    "int32_data": ("int32", "int16", "int8", "uint16", "uint8", "bool", "float16"),
    "int64_data": ("int64",),
    "double_data": ("float64",),
    "uint64_data": ("uint64", "uint32"),
}
_FIXED = {"float_data": 4, "double_data": 8}
_KEYS = ("location", "offset", "length", "checksum")
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class Tensors:
    """Reads the tensors of one file. `sizes` are the bytes of the other files of the model by path."""

    def __init__(self, reader: Reader, file: str, sizes: Mapping[str, int]) -> None:
        self._reader = reader
        self._file = file
        self._sizes = sizes
        self.external: dict[str, int] = {}
        """Bytes of all tensors in each other file."""

    def name_of(self, span: Span) -> str:
        """The name of a tensor, "" where it has none. Raises Malformed."""
        for number, _, value in self._reader.fields(span):
            if number == 8 and isinstance(value, Span):
                return self._reader.text(value)
        return ""

    def read(self, span: Span) -> Tensor:
        """A tensor. Raises Malformed, Unsupported."""
        message = self._reader.message(span, TENSOR)
        dtype = element_type(message.get("data_type", 0))
        dims = _dims(message.get("dims", []))
        name = message.get("name", "")
        if "segment" in message:
            raise Unsupported("it is stored in segments", "save the model again with onnx.save")
        if "string_data" in message:
            raise Unsupported("it holds text", "export the model without it")
        present = [field for field in ("raw_data", *_FIELDS) if field in message]
        external = message.get("data_location", 0)
        if external not in (0, 1):
            raise Malformed(
                f"its data_location is {external}, which is neither 0 (here) nor 1 (in another file)"
            )
        if external:
            if present:
                raise Malformed(f"it has {present[0]} here, and says that its data are in another file")
            return self._elsewhere(name, dtype, dims, message.get("external_data", []))
        if "external_data" in message:
            raise Malformed("it names another file, but says that its data are here")
        if len(present) > 1:
            raise Malformed(f"it has its data twice, as {present[0]} and as {present[1]}")
        return self._here(name, dtype, dims, present, message)

    def _here(
        self, name: str, dtype: str, dims: tuple[int, ...], present: list[str], message: Mapping[str, Any]
    ) -> Tensor:
        elements = math.prod(dims)
        if not present:
            if elements:
                raise Malformed(f"it should have {elements:,} elements, but has no data")
            return Tensor(name, dtype, dims, "raw", self._file, 0, 0)
        field = present[0]
        span: Span = message[field]
        if field == "raw_data":
            _same_bytes(span.length, dims, dtype)
            return Tensor(name, dtype, dims, "raw", self._file, span.begin, span.length)
        if dtype not in _FIELDS[field]:
            raise Malformed(f"its type is {dtype}, but its data are stored as {field}")
        if field in _FIXED:
            count, rest = divmod(span.length, _FIXED[field])
            if rest:
                raise Malformed(
                    f"its {field} have {span.length:,} bytes, which is no whole number of elements"
                )
        else:
            count = self._reader.count_varints(span)
        if count != elements:
            raise Malformed(
                f"its dimensions {list(dims)} ask for {elements:,} elements, but {count:,} are stored"
            )
        return Tensor(name, dtype, dims, "packed", self._file, span.begin, span.length)

    def _elsewhere(self, name: str, dtype: str, dims: tuple[int, ...], entries: list[Span]) -> Tensor:
        found = self._entries(entries)
        place = found.get("location", "")
        size = self._size_of(place)
        offset = _number(found, "offset", 0)
        wanted = math.prod(dims) * ITEM_SIZES[dtype]
        length = _number(found, "length", max(0, size - offset))
        _same_bytes(length, dims, dtype)
        if offset + length > size:
            raise Malformed(
                f"its data should end at byte {offset + length:,} of {place}, which has {size:,}",
                "upload that file again, whole",
            )
        self.external[place] = self.external.get(place, 0) + wanted
        if self.external[place] > size:
            raise Malformed(
                f"the tensors in {place} have more bytes together than its {size:,}",
                "store the data of each tensor once",
            )
        return Tensor(name, dtype, dims, "raw", place, offset, length)

    def _entries(self, entries: list[Span]) -> dict[str, str]:
        found: dict[str, str] = {}
        if len(entries) > 2 * len(_KEYS):
            raise Malformed("its external_data have too many entries")
        for span in entries:
            entry = self._reader.message(span, ENTRY)
            key = entry.get("key", "")
            if key not in _KEYS:
                raise Malformed(f"its external_data have the key {shown(key)}; known are {', '.join(_KEYS)}")
            if key in found:
                raise Malformed(f"its external_data have the key {key!r} twice")
            found[key] = entry.get("value", "")
        return found

    def _size_of(self, place: str) -> int:
        """Bytes of the file that holds the data: one of the model's own. Raises Malformed."""
        advice = (
            "its data must lie in a file beside the model, uploaded with it: "
            "onnx.save(..., location='model.onnx.data')"
        )
        try:
            check_path(place)
        except FileRefused:
            raise Malformed(
                f"its data should lie in {shown(place)}, which is no plain path inside the model", advice
            ) from None
        if place == self._file:
            raise Malformed("its data should lie in the ONNX file itself as if in another one", advice)
        if place.lower().endswith(FORBIDDEN_ENDINGS):
            raise Malformed(f"its data should lie in {place}, a kind of file that is not taken in", advice)
        if place not in self._sizes:
            raise Malformed(
                f"its data should lie in {shown(place)}, which was not uploaded", "upload it with the model"
            )
        return self._sizes[place]


def element_type(number: int) -> str:
    """The name of an element type that is taken in. Raises Malformed, Unsupported."""
    if number in DTYPES:
        return DTYPES[number]
    if number in OTHER_DTYPES:
        raise Unsupported(
            f"its type is {OTHER_DTYPES[number]}, in which ONNX Runtime computes little or nothing on "
            f"CPU; taken in are {', '.join(DTYPES.values())}",
            "export the model in float32",
        )
    raise Malformed(f"its element type has the number {number}, which ONNX does not know")


def _dims(dims: list[int]) -> tuple[int, ...]:
    if len(dims) > MAXIMUM_RANK:
        raise Unsupported(f"it has {len(dims):,} dimensions, more than the {MAXIMUM_RANK} allowed")
    for size in dims:
        if size < 0 or size > MAXIMUM_ELEMENTS:
            raise Malformed(f"a dimension is {size}, which cannot be")
    if math.prod(dims) > MAXIMUM_ELEMENTS:
        raise Malformed(f"its dimensions {dims} ask for more than {MAXIMUM_ELEMENTS:,} elements")
    return tuple(dims)


def _same_bytes(length: int, dims: tuple[int, ...], dtype: str) -> None:
    wanted = math.prod(dims) * ITEM_SIZES[dtype]
    if length != wanted:
        raise Malformed(
            f"its dimensions {list(dims)} in {dtype} ask for {wanted:,} bytes, but {length:,} are stored"
        )


def _number(found: Mapping[str, str], key: str, default: int) -> int:
    text = found.get(key)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise Malformed(f"the {key} of its data is {shown(text)}, which is no number of bytes")
    return int(text)
