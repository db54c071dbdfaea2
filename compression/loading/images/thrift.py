"""Structures in Thrift's compact protocol, as plain data: field number -> value. No torch.

Only what the footer of a parquet file is made of; every count is bounded by the bytes that are there.
"""

from __future__ import annotations

from typing import Any

MAXIMUM_DEPTH = 16
MAXIMUM_VALUES = 1_000_000

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class Malformed(ValueError):
    """The bytes are no structure."""


class Reader:
    """Reads one structure from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self._values = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The structure at the present place; raises Malformed."""
        if depth > MAXIMUM_DEPTH:
            raise Malformed("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while True:
            head = self._byte()
            if head == 0:
                return fields
            kind, step = head & 0x0F, head >> 4
            number = number + step if step else self._zigzag()
            if number in fields:
                raise Malformed("a field twice")
            fields[number] = self._value(kind, depth)

    def _byte(self) -> int:
        if self._place >= len(self._data):
            raise Malformed("cut off")
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Malformed("a number is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self._place:
            raise Malformed("cut off")
        self._place += length
        return self._data[self._place - length : self._place]

    def _value(self, kind: int, depth: int, *, inside: bool = False) -> Any:
        self._values += 1
        if self._values > MAXIMUM_VALUES:
            raise Malformed("too many values")
        if kind in (_TRUE, _FALSE):
            return self._byte() == _TRUE if inside else kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _MAP:
            return self._map(depth)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise Malformed("an unknown type")

    def _list(self, depth: int) -> list[Any]:
        if depth > MAXIMUM_DEPTH:
            raise Malformed("nested too deeply")
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > len(self._data) - self._place:
            raise Malformed("cut off")
        return [self._value(head & 0x0F, depth + 1, inside=True) for _ in range(count)]

    def _map(self, depth: int) -> list[tuple[Any, Any]]:
        if depth > MAXIMUM_DEPTH:
            raise Malformed("nested too deeply")
        count = self._varint()
        if not count:
            return []
        if count > len(self._data) - self._place:
            raise Malformed("cut off")
        kinds = self._byte()
        return [
            (
                self._value(kinds >> 4, depth + 1, inside=True),
                self._value(kinds & 0x0F, depth + 1, inside=True),
            )
            for _ in range(count)
        ]
