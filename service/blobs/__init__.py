"""Blobs: immutable files named by the SHA-256 of their content, on a local disk or in an S3 store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.blobs.base import CHUNK_BYTES, Blob, BlobStore, BlobWriter, concatenate, verify
from service.blobs.local import LocalBlobs
from service.settings import Settings

__all__ = [
    "CHUNK_BYTES",
    "Blob",
    "BlobStore",
    "BlobWriter",
    "LocalBlobs",
    "concatenate",
    "open_blobs",
    "verify",
]


def open_blobs(settings: Settings) -> BlobStore:
    """The blob store of `settings.blob_url`: `file:///folder` or `s3://bucket/prefix`.

    Raises:
        ValueError: the URL has another scheme.
    """
    parts = urlsplit(settings.blob_url)
    if parts.scheme == "file":
        return LocalBlobs(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from service.blobs.s3 import S3Blobs, s3_store

        return S3Blobs(s3_store(settings), spool=settings.work_dir / "spool")
    raise ValueError(f"blob_url must start with file:// or s3://, not {parts.scheme}://")
