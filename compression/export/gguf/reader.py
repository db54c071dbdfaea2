"""A reader of GGUF files that takes each list of a key as one piece.

The package's own makes two arrays of numpy for every string: half a minute and half a gigabyte for a
vocabulary of 150,000 tokens, of which nothing but equality is asked here.
"""

from __future__ import annotations

import struct
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_reader import ReaderField

_VALUE = gguf.GGUFValueType
_PLAIN = {
    _VALUE.BOOL: np.dtype("?"),
    _VALUE.INT32: np.dtype("<i4"),
    _VALUE.FLOAT32: np.dtype("<f4"),
}
_LENGTH = struct.Struct("<Q")


class Reader(gguf.GGUFReader):
    """`gguf.GGUFReader`; the parts of a list are its type, its length and the bytes of all its items."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[gguf.GGUFValueType]]:
        if _VALUE(raw_type) is not _VALUE.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        start, part = orig_offs + 12, _VALUE(kind[0])
        end = self._end(start, part, int(count[0]))
        if end > len(self.data):
            raise ValueError("a list leads out of the file")
        items = self._get(start, np.uint8, end - start)
        return end - orig_offs, [kind, count, items], [2], [_VALUE.ARRAY, part]

    def _end(self, start: int, part: gguf.GGUFValueType, count: int) -> int:
        """Where a list of so many items ends."""
        if part in _PLAIN:
            return start + count * _PLAIN[part].itemsize
        if part is not _VALUE.STRING:
            raise ValueError(f"a list of {part.name}, which is never written")
        place, view = start, self.data.data
        for _ in range(count):
            if place + _LENGTH.size > len(view):
                raise ValueError("a list leads out of the file")
            place += _LENGTH.size + _LENGTH.unpack_from(view, place)[0]
        return place


def value(field: ReaderField) -> Any:
    """The value of a key; of a list (length, bytes of its items)."""
    if field.types[0] is _VALUE.ARRAY:
        return int(field.parts[-2][0]), field.parts[-1].tobytes()
    return field.contents()


def whole_numbers(field: ReaderField) -> list[int]:
    """A list of whole numbers (int32)."""
    found: list[int] = np.frombuffer(field.parts[-1].tobytes(), _PLAIN[_VALUE.INT32]).tolist()
    return found


def packed(items: list[Any], part: gguf.GGUFValueType) -> tuple[int, bytes]:
    """A list as `value` gives it."""
    if part in _PLAIN:
        return len(items), np.asarray(items, _PLAIN[part]).tobytes()
    encoded = [item.encode() for item in items]
    return len(items), b"".join(_LENGTH.pack(len(item)) + item for item in encoded)
