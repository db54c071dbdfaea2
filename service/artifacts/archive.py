"""A tar of an artifact's files, streamed: nothing is staged, the length is known before the first byte, and
the same artifact always gives the same bytes (sorted names, no times, no owners)."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.blobs import BlobStore

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """A file of the archive: path, blob, size in bytes."""

    path: str
    sha256: str
    bytes: int


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.size, info.mode, info.mtime = member.bytes, 0o644, 0
    # PAX records appear only where plain headers cannot hold a long name or a size over 8 GiB.
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> int:
    return -size % BLOCK


class Archive:
    """A tar archive of `members`; `size` is its length in bytes, `etag` its strong validator."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = sorted(members, key=lambda member: member.path)
        self._headers = [_header(member) for member in self._members]
        body = sum(member.bytes + _padding(member.bytes) for member in self._members)
        content = body + sum(len(header) for header in self._headers) + 2 * BLOCK
        self._end = -content % tarfile.RECORDSIZE + 2 * BLOCK
        self.size = content - 2 * BLOCK + self._end
        names = "".join(f"{member.sha256} {member.bytes} {member.path}\n" for member in self._members)
        self.etag = f'"tar-sha256-{hashlib.sha256(names.encode()).hexdigest()}"'

    def read(self, blobs: BlobStore) -> Iterator[bytes]:
        """The archive in pieces of at most a blob store's chunk."""
        for header, member in zip(self._headers, self._members, strict=True):
            yield header
            yield from blobs.read(member.sha256, 0, member.bytes)
            if _padding(member.bytes):
                yield b"\0" * _padding(member.bytes)
        yield b"\0" * self._end
