"""The files in an uncompressed tar archive: one pass over its headers. No torch.

Links, devices and sparse files are refused, and the headers that carry long names are bounded, which the
standard library's reader does not do.
"""

from __future__ import annotations

from compression.loading.images.limits import MAXIMUM_ENTRIES, Window, refuse, shown
from compression.loading.images.zip_index import Entry
from compression.loading.sources import FileSource

BLOCK = 512
_LONGEST_EXTENSION = 64 << 10
_FILES, _FOLDERS = b"0\x007", b"5"


def tar_entries(name: str, source: FileSource) -> list[Entry]:
    """The files (not folders) in a tar archive, in order. Raises DatasetInvalid."""
    reader, place, entries, seen = Window(source), 0, list[Entry](), 0
    path: str | None = None
    size: int | None = None
    while place + BLOCK <= source.size:
        head = reader.read(place, BLOCK)
        if not head.strip(b"\0"):
            return entries
        seen += 1
        if seen > 2 * MAXIMUM_ENTRIES or len(entries) > MAXIMUM_ENTRIES:
            refuse(
                name,
                f"holds more than the {MAXIMUM_ENTRIES:,} files allowed; make several archives, or parquet",
            )
        _check_sum(name, head)
        kind, length = head[156:157], _number(name, head[124:136])
        place += BLOCK
        if kind in b"xgLK":
            if length > _LONGEST_EXTENSION:
                refuse(name, f"has a header of {length:,} bytes, which no archive of images needs")
            told = _extension(name, kind, reader.read(place, length))
            path, size = told[0] or path, told[1] if told[1] is not None else size
        else:
            here, length = path or _path(name, head), length if size is None else size
            path = size = None
            if kind in _FILES:
                entries.append(Entry(here, place, length, length))
            elif kind not in _FOLDERS:
                refuse(name, f"{shown(here)} in it is a link or a device, not a file")
        place += -(-length // BLOCK) * BLOCK
        if place > source.size + BLOCK or (entries and entries[-1].offset + entries[-1].stored > source.size):
            refuse(name, "cut off, or a size in it is wrong: make the archive again")
    if not entries and not seen:
        refuse(name, "no tar archive")
    return entries


def _check_sum(name: str, head: bytes) -> None:
    blanked = head[:148] + b" " * 8 + head[156:]
    if sum(blanked) != _number(name, head[148:156]):
        refuse(
            name,
            "no plain tar archive, or a damaged one (compressed ones, .tar.gz, must be unpacked: "
            "images hardly shrink)",
        )


def _number(name: str, field: bytes) -> int:
    """An octal number, or a binary one where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.replace(b"\0", b" ").strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        refuse(name, "no plain tar archive, or a damaged one")


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        refuse(name, f"the name {raw[:40]!r} in it is not UTF-8")


def _path(name: str, head: bytes) -> str:
    path = _text(name, head[:100].split(b"\0")[0])
    prefix = _text(name, head[345:500].split(b"\0")[0]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{path}" if prefix else path


def _extension(name: str, kind: bytes, data: bytes) -> tuple[str | None, int | None]:
    """The path and the size that a header before the real one tells. Those of all files (g) tell nothing of
    use."""
    if kind == b"L":
        return _text(name, data), None
    if kind != b"x":
        return None, None
    path, size, place = None, None, 0
    while place < len(data):
        length = data[place : place + 12].split(b" ")[0]
        if not length.isdigit() or int(length) < 4 or place + int(length) > len(data):
            refuse(name, "has a damaged header")
        key, _, value = (
            data[place : place + int(length)].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        )
        if key == b"path":
            path = _text(name, value)
        elif key == b"size":
            size = int(value) if value.isdigit() and len(value) < 16 else refuse(name, "has a damaged header")
        elif key.startswith(b"GNU.sparse"):
            refuse(name, "holds sparse files, which are not taken in")
        place += int(length)
    return path, size
