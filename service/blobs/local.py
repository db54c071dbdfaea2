"""Blobs on a local disk, published so that a crash at any moment leaves whole blobs or none."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from service import faults
from service.blobs.base import CHUNK_BYTES, Blob, checked, file_chunks, hash_chunks
from service.blobs.spool import Spool, space
from service.errors import BlobMissing, ServiceError, Unavailable


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(path: Path, root: Path) -> None:
    """Makes `path` below `root` durably: each new folder is synced into its parent."""
    if path == root or path.is_dir():
        return
    _make_folder(path.parent, root)
    path.mkdir(mode=0o755, exist_ok=True)
    _sync_folder(path.parent)


class LocalBlobs:
    """Blobs below one folder: `objects/ab/cd/<sha256>` (read-only files) and `staging/`, on one file system.

    Not for network file systems: rename and flock must be atomic.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        for name in ("objects", "staging", "locks"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the blob is or would be."""
        return self.root / "objects" / checked(sha256)[:2] / sha256[2:4] / sha256

    def writer(self) -> LocalWriter:
        """A writer into the staging folder."""
        return LocalWriter(self)

    def put_file(self, path: Path) -> Blob:
        """Stores a copy of the file at `path`."""
        with self.writer() as writer:
            for chunk in file_chunks(path):
                writer.write(chunk)
            return writer.commit()

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Chunks of at most 1 MiB. A blob deleted meanwhile is still read to its end."""
        if self.size(sha256) is None:
            raise BlobMissing(f"blob {sha256} is missing")
        return self._chunks(sha256, start, length)

    def _chunks(self, sha256: str, start: int, length: int | None) -> Iterator[bytes]:
        try:
            file = self.path(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            raise BlobMissing(f"blob {sha256} is missing") from None
        with file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                chunk = file.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES))
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk

    def materialise(self, sha256: str, destination: Path) -> None:
        """Links `destination` to the read-only object."""
        if self.size(sha256) is None:
            raise BlobMissing(f"blob {sha256} is missing")
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.symlink_to(self.path(sha256))

    def delete(self, sha256: str, minimum_age: float = 0.0) -> bool:
        """Deletes the blob unless it was stored again less than `minimum_age` seconds ago."""
        path = self.path(sha256)
        with self.locked(sha256):
            try:
                if time.time() - path.stat().st_mtime < minimum_age:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def iterate(self) -> Iterator[tuple[str, float]]:
        """Digest and age of every blob."""
        now = time.time()
        for path in (self.root / "objects").glob("??/??/*"):
            with suppress(FileNotFoundError):  # deleted while we look
                yield path.name, now - path.stat().st_mtime

    def sweep(self, minimum_age: float) -> int:
        """Removes old files of the staging folder."""
        limit, removed = time.time() - minimum_age, 0
        for path in (self.root / "staging").iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    removed += 1
        return removed

    def check(self) -> None:
        """Writes and removes a small file."""
        try:
            with self.writer() as writer:
                writer.write(b"check")
        except ServiceError:
            raise
        except OSError as error:
            raise Unavailable("the blob store cannot be written to") from error

    @contextmanager
    def locked(self, sha256: str) -> Iterator[None]:
        """Keeps deleting and publishing of one digest apart, over all processes of this machine.

        Without it, a collector that has just judged a blob old could delete the copy stored a moment later.
        """
        handle = os.open(
            self.root / "locks" / checked(sha256)[:2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class LocalWriter:
    """Writes into staging while hashing; `commit` syncs the file, renames it and syncs the folder."""

    def __init__(self, store: LocalBlobs) -> None:
        self._store = store
        self._spool = Spool(store.root / "staging")

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._spool.write(data)

    def commit(self) -> Blob:
        """Publishes the blob. On any error before the rename, nothing stays behind."""
        blob, spool = self._spool.content(), self._spool
        target = self._store.path(blob.sha256)
        try:
            with space():
                os.fsync(spool.handle)
                os.fchmod(spool.handle, 0o444)
                faults.point("after_fsync")
                _make_folder(target.parent, self._store.root)
                intact = self._is_intact(target, blob)
                with self._store.locked(blob.sha256):
                    self._place(target, intact)
                spool.close()
                faults.point("after_rename")
                _sync_folder(target.parent)
        except BaseException:
            self.abort()
            raise
        return blob

    def _is_intact(self, target: Path, blob: Blob) -> bool:
        """Whether the blob is there already, undamaged."""
        try:
            return target.stat().st_size == blob.bytes and hash_chunks(file_chunks(target)) == blob
        except FileNotFoundError:
            return False

    def _place(self, target: Path, intact: bool) -> None:
        """Renames into place; an equal blob that is there stays, because sandboxes hold on to its inode.

        Either way the blob gets a new age, which keeps collectors away until a row refers to it.
        """
        if intact and target.exists():
            os.utime(target)
            self._spool.path.unlink()
        else:
            os.utime(self._spool.handle)
            os.replace(self._spool.path, target)

    def abort(self) -> None:
        """Removes the staged file."""
        self._spool.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
