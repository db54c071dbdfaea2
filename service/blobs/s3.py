"""Blobs in an S3-compatible store.

An object appears under its digest only when it is whole, so a crash leaves at most an unfinished multipart
upload; let a life-cycle rule of the bucket abort those after a day. What is written piece by piece is
spooled to a local file first: its name is known only at the end, and S3 can neither rename objects nor copy
those over 5 GB.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service import faults
from service.blobs.base import CHUNK_BYTES, Blob, checked, file_chunks, hash_chunks
from service.blobs.spool import Spool, space
from service.errors import BlobCorrupt, BlobMissing, Unavailable
from service.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_UPLOAD_CHUNK: Final = 8 * CHUNK_BYTES
_UPLOADS_AT_ONCE: Final = 3
_RETRY: Final[RetryConfig] = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


def s3_store(settings: Settings) -> S3Store:
    """The bucket and prefix of `settings.blob_url`. Without keys in the settings, the environment's AWS
    credentials are used; with an endpoint in the settings, that one instead of Amazon's."""
    parts = urlsplit(settings.blob_url)
    config: S3Config = {"region": settings.s3_region, "checksum_algorithm": "SHA256"}
    client: ClientConfig = {"connect_timeout": "10s", "timeout": "300s"}
    if settings.s3_endpoint:
        config["endpoint"] = settings.s3_endpoint
        config["virtual_hosted_style_request"] = False
        client["allow_http"] = settings.s3_endpoint.startswith("http://")
    if settings.s3_access_key:
        config["access_key_id"] = settings.s3_access_key
    if settings.s3_secret_key is not None:
        config["secret_access_key"] = settings.s3_secret_key.get_secret_value()
    prefix = parts.path.strip("/") or None
    return S3Store(parts.netloc, prefix=prefix, config=config, client_options=client, retry_config=_RETRY)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:  # what the client raises for a missing object
        raise
    except (BaseError, OSError) as error:
        raise Unavailable("the blob store does not answer; try again") from error


@contextmanager
def _existing_bucket() -> Iterator[None]:
    try:
        with _answering():
            yield
    except FileNotFoundError as error:
        raise Unavailable("the bucket of the blob store does not exist") from error


class S3Blobs:
    """Blobs as objects `objects/ab/cd/<sha256>` below the prefix of the store."""

    def __init__(self, store: S3Store, spool: Path) -> None:
        self._store = store
        self.spool = spool
        spool.mkdir(parents=True, exist_ok=True)

    def key(self, sha256: str) -> str:
        """The key of the blob, relative to the prefix."""
        return f"objects/{checked(sha256)[:2]}/{sha256[2:4]}/{sha256}"

    def writer(self) -> S3Writer:
        """A writer into the spool folder."""
        return S3Writer(self)

    def put_file(self, path: Path) -> Blob:
        """Stores a copy of the file at `path`: read once for its digest, and once to be sent."""
        blob = hash_chunks(file_chunks(path))
        self.upload(path, blob)
        return blob

    def upload(self, path: Path, blob: Blob) -> None:
        """Sends a file whose digest is known. An object that is there already is sent again: that makes it
        young, which keeps collectors away until a row refers to it."""
        with _existing_bucket():
            obstore.put(
                self._store,
                self.key(blob.sha256),
                path,
                chunk_size=_UPLOAD_CHUNK,
                max_concurrency=_UPLOADS_AT_ONCE,
            )
        stored = self.size(blob.sha256)
        if stored != blob.bytes:
            raise BlobCorrupt(f"blob {blob.sha256} was stored with {stored} bytes, not {blob.bytes}")

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None."""
        try:
            with _answering():
                return int(obstore.head(self._store, self.key(sha256))["size"])
        except FileNotFoundError:
            return None

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Chunks of at most 1 MiB; one request."""
        size = self.size(sha256)
        if size is None:
            raise BlobMissing(f"blob {sha256} is missing")
        end = size if length is None else min(size, start + length)
        return self._chunks(sha256, start, end) if start < end else iter(())

    def _chunks(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        with _answering():
            try:
                answer = obstore.get(self._store, self.key(sha256), options={"range": (start, end)})
            except FileNotFoundError:
                raise BlobMissing(f"blob {sha256} is missing") from None
            for piece in answer.stream(min_chunk_size=CHUNK_BYTES):
                view = memoryview(piece)
                for offset in range(0, len(view), CHUNK_BYTES):
                    yield bytes(view[offset : offset + CHUNK_BYTES])

    def materialise(self, sha256: str, destination: Path) -> None:
        """Downloads the blob to `destination` and checks its digest. Raises `BlobCorrupt`."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        spool = Spool(destination.parent)
        try:
            for chunk in self.read(sha256):
                spool.write(chunk)
            found = spool.content()
            if found.sha256 != sha256:
                raise BlobCorrupt(f"blob {sha256} has the digest {found.sha256}")
            spool.path.chmod(0o444)
            spool.path.rename(destination)
            spool.close()
        finally:
            spool.discard()

    def delete(self, sha256: str, minimum_age: float = 0.0) -> bool:
        """Deletes the blob unless it was stored again less than `minimum_age` seconds ago.

        S3 cannot compare and delete in one step: storing equal content in the few milliseconds between both
        would be lost. The collector passes at least an hour, so only blobs that nobody used for so long are
        at risk.
        """
        try:
            with _answering():
                if _age(obstore.head(self._store, self.key(sha256))["last_modified"]) < minimum_age:
                    return False
                obstore.delete(self._store, self.key(sha256))
        except FileNotFoundError:
            return False
        return True

    def iterate(self) -> Iterator[tuple[str, float]]:
        """Digest and age of every blob."""
        with _existing_bucket():
            for batch in obstore.list(self._store, prefix="objects"):
                for item in batch:
                    yield item["path"].rpartition("/")[2], _age(item["last_modified"])

    def sweep(self, minimum_age: float) -> int:
        """Removes old files of the spool folder."""
        limit, removed = time.time() - minimum_age, 0
        for path in self.spool.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    removed += 1
        return removed

    def check(self) -> None:
        """Writes a small object."""
        with _existing_bucket():
            obstore.put(self._store, "check", b"check")


def _age(modified: datetime) -> float:
    return (datetime.now(UTC) - modified).total_seconds()


class S3Writer:
    """Spools to a local file while hashing; `commit` sends it."""

    def __init__(self, store: S3Blobs) -> None:
        self._store = store
        self._spool = Spool(store.spool)

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._spool.write(data)

    def commit(self) -> Blob:
        """Publishes the blob; the spooled file is removed in any case."""
        blob = self._spool.content()
        try:
            faults.point("after_fsync")
            with space():
                self._store.upload(self._spool.path, blob)
            faults.point("after_rename")
        finally:
            self.abort()
        return blob

    def abort(self) -> None:
        """Removes the spooled file."""
        self._spool.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
