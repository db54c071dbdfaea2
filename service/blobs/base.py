"""What every blob store can do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from service.errors import BlobCorrupt

CHUNK_BYTES: Final = 1024 * 1024

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """A stored file: its digest in lower-case hex, and its size."""

    sha256: str
    bytes: int


class BlobWriter(Protocol):
    """Takes the bytes of one blob. Used as a context manager, it is aborted unless it was committed."""

    def write(self, data: bytes) -> None:
        """Appends bytes. Raises `StorageFull` when there is no space; nothing stays behind."""

    def commit(self) -> Blob:
        """Makes the blob durable and visible under its digest, all of it or nothing."""

    def abort(self) -> None:
        """Forgets what was written. Does nothing after `commit`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BlobStore(Protocol):
    """Content-addressed storage. Safe for any number of threads and processes; equal content is one blob."""

    def writer(self) -> BlobWriter:
        """A writer for a new blob."""

    def put_file(self, path: Path) -> Blob:
        """Stores a copy of the file at `path`."""

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None if there is no such blob."""

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `start + length` (to the end without `length`) in chunks of at most 1 MiB.

        Raises `BlobMissing` at the call, not at the first chunk.
        """

    def materialise(self, sha256: str, destination: Path) -> None:
        """Makes the blob readable at the path `destination`, which must not exist. Read-only."""

    def delete(self, sha256: str, minimum_age: float = 0.0) -> bool:
        """Deletes a blob that was last stored `minimum_age` seconds ago or earlier; says whether it did."""

    def iterate(self) -> Iterator[tuple[str, float]]:
        """Digest of every blob, and seconds since it was last stored."""

    def sweep(self, minimum_age: float) -> int:
        """Removes what interrupted writers left behind `minimum_age` seconds ago or earlier; how many."""

    def check(self) -> None:
        """Raises `Unavailable` or `StorageFull` unless the store can be written to."""


def checked(sha256: str) -> str:
    """The digest itself, once it is sure to be one: it becomes part of a path or key.

    Raises:
        ValueError: it is no lower-case hex SHA-256.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError("not a SHA-256 digest in lower-case hex")
    return sha256


def hash_chunks(chunks: Iterable[bytes]) -> Blob:
    """Digest and size of a sequence of chunks."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return Blob(digest.hexdigest(), size)


def file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file in chunks of 1 MiB."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def concatenate(blobs: BlobStore, parts: Iterable[Blob]) -> Blob:
    """One blob out of several, in order. A single part is the result itself: nothing is copied.

    Raises:
        BlobMissing: a part is gone.
        BlobCorrupt: a part no longer has its size.
        StorageFull: no space for the result.
    """
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    with blobs.writer() as writer:
        for part in listed:
            size = 0
            for chunk in blobs.read(part.sha256):
                writer.write(chunk)
                size += len(chunk)
            if size != part.bytes:
                raise BlobCorrupt(f"blob {part.sha256} has {size} bytes, not {part.bytes}")
        return writer.commit()


def verify(blobs: BlobStore, sha256: str) -> int:
    """Reads a blob through and compares its digest; returns its size in bytes.

    Raises:
        BlobMissing: there is no such blob.
        BlobCorrupt: its content has another digest.
    """
    found = hash_chunks(blobs.read(sha256))
    if found.sha256 != sha256:
        raise BlobCorrupt(f"blob {sha256} has the digest {found.sha256}")
    return found.bytes
