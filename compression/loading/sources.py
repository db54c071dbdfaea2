"""Where uploaded files are read from, piece by piece. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class FileSource(Protocol):
    """One uploaded file, wherever it is stored."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, `length` of them, fewer only at the end of the file."""
        ...


class PathSource:
    """A file on disk. Opened for every read, so nothing is left to close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)


class BytesSource:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def folder_sources(folder: Path) -> dict[str, FileSource]:
    """The regular files under a folder by their relative path with forward slashes; links that leave it are
    not read."""
    root = folder.resolve()
    found: dict[str, FileSource] = {}
    for place, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() and path.resolve().is_relative_to(root):
                found[path.relative_to(root).as_posix()] = PathSource(path)
    return found


def chunks(source: FileSource, size: int = 1 << 20) -> Iterator[bytes]:
    """All bytes of a source in pieces of `size`."""
    position = 0
    while position < source.size:
        piece = source.read(position, min(size, source.size - position))
        if not piece:
            return
        position += len(piece)
        yield piece


Files = Mapping[str, FileSource]
