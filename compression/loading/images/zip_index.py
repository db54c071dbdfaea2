"""The table of contents of a zip archive, read with care. No torch.

The standard library's reader takes the whole directory into memory and believes what it says; this one bounds
the number of entries first, and refuses entries that overlap, leave the file, are encrypted or packed in a
way that is not "stored" or "deflated".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from compression.loading.images.limits import MAXIMUM_ENTRIES, MAXIMUM_EXPANDED, Window, refuse, shown
from compression.loading.sources import FileSource

STORED, DEFLATED = 0, 8
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_WORST_RATIO = 1032  # of deflate


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in an archive: its bytes begin at `offset`, take `stored` bytes there and `size` unpacked.

    `crc` is None where the container has none.
    """

    name: str
    offset: int
    stored: int
    size: int
    deflated: bool = False
    crc: int | None = None


def zip_entries(name: str, source: FileSource) -> list[Entry]:
    """The files (not folders) in a zip archive, in the order of their places. `offset` is that of the local
    header: `located` finds the bytes. Raises DatasetInvalid."""
    start, length, count = _directory(name, source)
    if count > MAXIMUM_ENTRIES:
        refuse(
            name,
            f"holds {count:,} files, more than the {MAXIMUM_ENTRIES:,} allowed; make several "
            "archives, or parquet",
        )
    reader, place, entries = Window(source), start, []
    for _ in range(count):
        if place + 46 > start + length:
            refuse(name, "its directory ends too early: the archive is damaged or cut off")
        entry, place = _central(name, reader, place)
        if entry is not None:
            entries.append(entry)
    entries.sort(key=lambda entry: entry.offset)
    _check_places(name, entries, start)
    return entries


def _directory(name: str, source: FileSource) -> tuple[int, int, int]:
    """(offset, bytes, entries) of the central directory."""
    first = max(0, source.size - 65_557)
    tail = source.read(first, source.size - first) if source.size else b""
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        refuse(name, "no zip archive, or one that is cut off")
    end = tail[at : at + 22]
    count, length, start = (int.from_bytes(end[a:b], "little") for a, b in ((10, 12), (12, 16), (16, 20)))
    if int.from_bytes(end[4:6], "little") not in (0, 0xFFFF):
        refuse(name, "one part of an archive in several parts")
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        locator = source.read(first + at - 20, 20) if first + at >= 20 else b""
        if locator[:4] == _LOCATOR64:
            record = source.read(int.from_bytes(locator[8:16], "little"), 56)
            if len(record) < 56 or record[:4] != _END64:
                refuse(name, "its directory is damaged")
            count, length, start = (int.from_bytes(record[a : a + 8], "little") for a in (32, 40, 48))
    if start + length > first + at or count * 46 > length:
        refuse(name, "its directory does not lie inside the file: the archive is damaged")
    return start, length, count


def _central(name: str, reader: Window, place: int) -> tuple[Entry | None, int]:
    """One record of the directory (None for a folder), and where the next begins."""
    head = reader.read(place, 46)
    if len(head) < 46 or head[:4] != _CENTRAL:
        refuse(name, "its directory is damaged")

    def number(at: int, width: int) -> int:
        return int.from_bytes(head[at : at + width], "little")

    flags, method, crc = number(8, 2), number(10, 2), number(16, 4)
    names, extras, comments = number(28, 2), number(30, 2), number(32, 2)
    raw = reader.read(place + 46, names + extras)
    if len(raw) < names + extras:
        refuse(name, "its directory is damaged")
    try:
        path = raw[:names].decode("utf-8" if flags & 0x800 else "cp437")
    except UnicodeDecodeError:
        refuse(name, f"the name {raw[:40]!r} in it is not UTF-8")
    stored, size, offset = _wide(raw[names:], number(20, 4), number(24, 4), number(42, 4))
    following = place + 46 + names + extras + comments
    if path.endswith("/"):
        return None, following

    def bad(what: str) -> NoReturn:
        refuse(name, f"{shown(path)} in it {what}")

    if flags & 0x41:
        bad("is encrypted")
    if method not in (STORED, DEFLATED):
        bad("is packed in an unusual way; use plain zip (deflate)")
    if (number(38, 4) >> 16) & 0xF000 not in (0, 0x8000):
        bad("is a link or a device, not a file")
    if (
        size > MAXIMUM_EXPANDED
        or size > _WORST_RATIO * stored + 1024
        or (method == STORED and size != stored)
    ):
        bad(f"claims {size:,} bytes packed into {stored:,}, which cannot be")
    return Entry(path, offset, stored, size, method == DEFLATED, crc), following


def _wide(extra: bytes, stored: int, size: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset, from the extra field of zip64 where 32 bits were too few."""
    values, place = {"size": size, "stored": stored, "offset": offset}, 0
    while place + 4 <= len(extra):
        kind, length = (int.from_bytes(extra[place + at : place + at + 2], "little") for at in (0, 2))
        if kind == 1:
            field, at = extra[place + 4 : place + 4 + length], 0
            for key in ("size", "stored", "offset"):
                if values[key] == 0xFFFFFFFF and at + 8 <= len(field):
                    values[key] = int.from_bytes(field[at : at + 8], "little")
                    at += 8
        place += 4 + length
    return values["stored"], values["size"], values["offset"]


def _check_places(name: str, entries: list[Entry], directory: int) -> None:
    """That no two entries share bytes: overlapping ones make small archives enormous."""
    total = 0
    for number, entry in enumerate(entries):
        limit = entries[number + 1].offset if number + 1 < len(entries) else directory
        if entry.offset + 30 + entry.stored > limit:
            refuse(
                name,
                f"{shown(entry.name)} in it overlaps what follows, or leaves the file: the archive is "
                "damaged",
            )
        total += entry.size
    if total > MAXIMUM_EXPANDED:
        refuse(name, f"unpacks to {total:,} bytes, more than the {MAXIMUM_EXPANDED:,} allowed")


def located(name: str, source: FileSource, entry: Entry) -> Entry:
    """The entry with the place of its bytes instead of that of its local header."""
    head = source.read(entry.offset, 30)
    if len(head) < 30 or head[:4] != _LOCAL:
        refuse(name, f"{shown(entry.name)} in it has no header: the archive is damaged")
    start = entry.offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if start + entry.stored > source.size:
        refuse(name, f"{shown(entry.name)} in it is cut off")
    return Entry(entry.name, start, entry.stored, entry.size, entry.deflated, entry.crc)


def unpacked(name: str, source: FileSource, entry: Entry, piece: int = 1 << 18) -> Iterator[bytes]:
    """The bytes of a located entry in pieces; never more than `entry.size`. Raises DatasetInvalid if they do
    not unpack, are fewer or more, or are not those that were packed."""

    def bad() -> NoReturn:
        refuse(name, f"{shown(entry.name)} in it is damaged")

    engine = zlib.decompressobj(-15) if entry.deflated else None
    given, crc, place, end = 0, 0, entry.offset, entry.offset + entry.stored
    while engine is None or not engine.eof:
        waiting = b"" if engine is None else engine.unconsumed_tail
        raw = b"" if waiting or place >= end else source.read(place, min(piece, end - place))
        try:
            # Without more to put in, what the engine still holds comes out.
            data = raw if engine is None else engine.decompress(waiting or raw, piece)
        except zlib.error:
            bad()
        if not raw and not data:
            break
        place += len(raw)
        given += len(data)
        if given > entry.size:
            bad()
        crc = zlib.crc32(data, crc)
        if data:
            yield data
    if given != entry.size or (entry.crc is not None and crc != entry.crc):
        bad()


def first_bytes(name: str, source: FileSource, entry: Entry, count: int) -> bytes:
    """The first `count` bytes of a located entry, fewer if it has fewer. Raises DatasetInvalid."""
    raw = source.read(entry.offset, min(entry.stored, count)) if entry.stored else b""
    if not entry.deflated:
        return raw
    try:
        return zlib.decompressobj(-15).decompress(raw, count)
    except zlib.error:
        refuse(name, f"{shown(entry.name)} in it is damaged")
