"""What a dataset of images may hold at most, and how one is refused. No torch."""

from __future__ import annotations

from typing import NoReturn

from compression.errors import DatasetInvalid
from compression.loading.sources import FileSource

MAXIMUM_IMAGES = 2_000_000
MAXIMUM_ENTRIES = 500_000
"""Files in an archive: each has a name and costs memory while the archive is looked at."""
MAXIMUM_IMAGE_BYTES = 64 << 20
"""Of one encoded image."""
MAXIMUM_PIXELS = 1 << 25
"""Of one image: 100 MB once it is decoded to RGB."""
MAXIMUM_SIDE = 1 << 15
MAXIMUM_EXPANDED = 1 << 38
"""Bytes of all images of a file once what the container packs is unpacked."""

WINDOW = 1 << 20


def refuse(name: str, what: str) -> NoReturn:
    """Raises DatasetInvalid: `name` is the file, or what lies in it."""
    raise DatasetInvalid(f"{name}: {what}.")


def shown(text: str) -> str:
    """A name of a stranger as a message may show it."""
    return repr(text[:120])


class Window:
    """Reads a source through one piece of WINDOW bytes, so that many small reads in order cost few real
    ones."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._start = 0
        self._held = b""

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        """As of a source; nothing is asked of it where nothing is wanted."""
        if length <= 0 or offset >= self.size:
            return b""
        inside = offset - self._start
        if 0 <= inside and inside + length <= len(self._held):
            return self._held[inside : inside + length]
        if length > WINDOW:
            return self._source.read(offset, length)
        self._start, self._held = offset, self._source.read(offset, min(WINDOW, max(0, self.size - offset)))
        return self._held[:length]
