"""Reads the wire format of Protocol Buffers piece by piece, trusting no length and loading no long field.

Stricter than the libraries: no groups, no field twice where one is expected, no unknown field, varints of at
most ten bytes, text that is UTF-8, and a budget of fields and bytes for the whole file. Messages nest only as
deep as the caller descends. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from compression.loading.sources import FileSource

MAXIMUM_FIELDS = 2_000_000
MAXIMUM_BYTES = 64 << 20
"""Read of one file besides the tensors' data, which are passed over."""
MAXIMUM_TEXT = 1024
MAXIMUM_BLOB = 1 << 20
MAXIMUM_REPEATED = 10_000
"""Texts or messages under one name of a message that is read whole."""
MAXIMUM_NUMBERS = 1_000_000
"""Numbers in lists of one file."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIRST_WINDOW, _LAST_WINDOW = 16 << 10, 1 << 20
_HEAD = 20
"""Bytes of the longest key and the longest varint after it."""
_PIECE = 64 << 10
_CONTINUED = bytes(range(0x80, 0x100))
_ENDLESS = re.compile(rb"[\x80-\xff]{10}")


class Malformed(ValueError):
    """The bytes are no message of the schema; the text says why, without a full stop, `advice` what to do."""

    advice = "the file is damaged or no ONNX model: export it again"

    def __init__(self, what: str, advice: str | None = None) -> None:
        super().__init__(what)
        self.advice = advice or self.advice


class Kind(Enum):
    """What a field holds."""

    INT = "an integer"
    FLOAT = "a float"
    TEXT = "text"
    BYTES = "bytes"
    SPAN = "a message"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message. A SPAN is given as the place of its bytes, not read."""

    name: str
    kind: Kind
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of a file from `begin` up to `end`."""

    begin: int
    end: int

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.begin


Schema = Mapping[int, Field]
_LENGTHS = {Kind.TEXT: MAXIMUM_TEXT, Kind.BYTES: MAXIMUM_BLOB}


class Reader:
    """Reads messages of one file. Its budget counts over all of them."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._held = b""
        self._start = 0
        self._window = _FIRST_WINDOW
        self._fields_left = MAXIMUM_FIELDS
        self._bytes_left = MAXIMUM_BYTES
        self._numbers_left = MAXIMUM_NUMBERS

    @property
    def whole(self) -> Span:
        """The file."""
        return Span(0, self._source.size)

    def message(self, span: Span, schema: Schema) -> dict[str, Any]:
        """The fields of a message by name: numbers, text, bytes, `Span`s, and lists of them where repeated.

        What is not there is left out. Raises Malformed.
        """
        found: dict[str, Any] = {}
        for number, wire, value in self.fields(span):
            field = schema.get(number)
            if field is None:
                raise Malformed(f"holds the field {number}, which this kind of message does not have")
            name = field.name
            if not field.repeated:
                if name in found:
                    raise Malformed(f"holds {name!r} twice")
                found[name] = self._value(field, wire, value)
            elif field.kind in (Kind.INT, Kind.FLOAT):
                found.setdefault(name, []).extend(self._numbers(field, wire, value))
            else:
                values = found.setdefault(name, [])
                values.append(self._value(field, wire, value))
                if len(values) > MAXIMUM_REPEATED:
                    raise Malformed(f"holds more than {MAXIMUM_REPEATED:,} of {name!r}")
        return found

    def fields(self, span: Span) -> Iterator[tuple[int, int, int | Span]]:
        """Every field of a message in order: its number, wire type, and its value: the number itself for a
        varint, the place of its bytes for everything else. Raises Malformed."""
        place, end = span.begin, span.end
        while place < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise Malformed(f"holds more than {MAXIMUM_FIELDS:,} fields")
            index = self._ensure(place, min(_HEAD, end - place))
            stop = min(index + end - place, len(self._held))
            key, after = _varint(self._held, index, stop)
            number, wire = key >> 3, key & 7
            if not number or number >= 1 << 29:
                raise Malformed(f"holds a field with the number {number}, which cannot be")
            value: int | Span
            if wire == VARINT:
                value, after = _varint(self._held, after, stop)
                place += after - index
            else:
                if wire == LENGTH:
                    length, after = _varint(self._held, after, stop)
                elif wire in (FIXED32, FIXED64):
                    length = 4 if wire == FIXED32 else 8
                else:
                    raise Malformed(f"the field {number} has the wire type {wire}, which is not taken in")
                place += after - index
                if length > end - place:
                    raise Malformed(
                        f"the field {number} should have {length:,} bytes, but only {end - place:,} are left",
                        "the file is cut off or damaged: upload it again",
                    )
                value = Span(place, place + length)
                place += length
            yield number, wire, value

    def take(self, span: Span, maximum: int) -> bytes:
        """The bytes of a field of at most `maximum` bytes. Raises Malformed."""
        if span.length > maximum:
            raise Malformed(
                f"{span.length:,} bytes, more than the {maximum:,} allowed",
                "export the model with less in it",
            )
        self._bytes_left -= span.length
        if self._bytes_left < 0:
            raise Malformed(
                f"the file describes more than {MAXIMUM_BYTES >> 20} MiB besides the data of its tensors",
                "store its tensors as raw data (onnx.save writes them so) and in initializers",
            )
        if not span.length:
            return b""
        index = self._ensure(span.begin, span.length)
        return self._held[index : index + span.length]

    def text(self, span: Span, maximum: int = MAXIMUM_TEXT) -> str:
        """A field as text. Raises Malformed where it is too long or no UTF-8."""
        try:
            return self.take(span, maximum).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"not UTF-8 text (byte {error.start})") from None

    def count_varints(self, span: Span) -> int:
        """How many varints a packed field holds. Raises Malformed where they are no varints, or where they
        take more than the budget."""
        count = 0
        tail = b""
        for place in range(span.begin, span.end, _PIECE):
            piece = self.take(Span(place, min(span.end, place + _PIECE)), _PIECE)
            if _ENDLESS.search(tail + piece):
                raise Malformed("holds a varint of more than ten bytes")
            count += len(piece.translate(None, _CONTINUED))
            tail = piece[-9:]
        if tail and tail[-1] >= 0x80:
            raise Malformed("ends within a varint")
        return count

    def _value(self, field: Field, wire: int, value: int | Span) -> Any:
        kind = field.kind
        if kind is Kind.INT and wire == VARINT:
            assert isinstance(value, int)
            return _signed(value)
        if isinstance(value, Span):
            if kind is Kind.FLOAT and wire == FIXED32:
                return struct.unpack("<f", self.take(value, 4))[0]
            if wire == LENGTH:
                return self._long(field, value)
        raise Malformed(f"{field.name!r} should be {kind.value}, but has the wire type {wire}")

    def _long(self, field: Field, span: Span) -> Any:
        if field.kind is Kind.SPAN:
            return span
        if field.kind not in _LENGTHS:
            raise Malformed(f"{field.name!r} should be {field.kind.value}, but has the wire type {LENGTH}")
        try:
            if field.kind is Kind.BYTES:
                return self.take(span, MAXIMUM_BLOB)
            return self.text(span, _LENGTHS[field.kind])
        except Malformed as error:
            raise Malformed(f"{field.name!r}: {error}", error.advice) from None

    def _numbers(self, field: Field, wire: int, value: int | Span) -> list[Any]:
        """Repeated numbers: one of them, or all of them packed into one field."""
        if wire != LENGTH:
            self._count_numbers(1)
            return [self._value(field, wire, value)]
        assert isinstance(value, Span)
        data = self.take(value, MAXIMUM_BLOB)
        self._count_numbers(
            len(data) // 4 if field.kind is Kind.FLOAT else len(data.translate(None, _CONTINUED))
        )
        if field.kind is Kind.FLOAT:
            if len(data) % 4:
                raise Malformed(
                    f"{field.name!r} has {len(data):,} bytes, which are no whole number of floats"
                )
            return list(struct.unpack(f"<{len(data) // 4}f", data))
        found: list[int] = []
        index = 0
        while index < len(data):
            number, index = _varint(data, index, len(data))
            found.append(_signed(number))
        return found

    def _count_numbers(self, count: int) -> None:
        self._numbers_left -= count
        if self._numbers_left < 0:
            raise Malformed(f"the file holds more than {MAXIMUM_NUMBERS:,} numbers in its attributes")

    def _ensure(self, place: int, length: int) -> int:
        """Makes sure that `length` bytes from `place` on are held; the index of the first."""
        index = place - self._start
        if index >= 0 and index + length <= len(self._held):
            return index
        # Twice as much each time that reading goes on, little again after a leap over data.
        follows = 0 <= index <= len(self._held)
        self._window = min(2 * self._window, _LAST_WINDOW) if follows else _FIRST_WINDOW
        size = min(max(length, self._window), self._source.size - place)
        self._start, self._held = place, self._source.read(place, size)
        if len(self._held) < length:
            raise Malformed("could not be read to its end")
        return 0


def _varint(data: bytes, index: int, stop: int) -> tuple[int, int]:
    """The varint at `index` of `data`, which ends before `stop`, and the index after it."""
    value = shift = 0
    while index < stop:
        byte = data[index]
        index += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise Malformed("holds a number of more than 64 bits")
            return value, index
        shift += 7
        if shift > 63:
            raise Malformed("holds a varint of more than ten bytes")
    raise Malformed("is cut off within a number")


def _signed(number: int) -> int:
    """A 64-bit number as the signed one with the same bits."""
    return number - (1 << 64) if number >> 63 else number
