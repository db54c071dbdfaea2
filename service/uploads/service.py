"""Uploads in numbered parts: any order, as often as needed, each with its sha256.

The cut into parts follows from the announced files alone, so both sides compute the same numbers.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service import ids
from service.auth import Call
from service.blobs import Blob, concatenate
from service.errors import (
    DigestMismatch,
    Fault,
    InvalidRequest,
    PartInvalid,
    TooLarge,
    UploadClosed,
    UploadExpired,
    UploadIncomplete,
    UploadNotFound,
)
from service.files.repository import FileEntry, Files
from service.idempotency import Answer
from service.models.service import file_list
from service.names import checked_paths
from service.paging import valid_id
from service.tables import Upload
from service.times import rfc3339, rfc3339_or_none
from service.uploads.repository import Uploads
from service.uploads.schemas import UploadCreate

MOST_PARTS = 10_000
LARGEST_PART = 4 * 1024**3
_MOST_NAMED = 20
_DIGEST = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/]+={0,2}):")


@dataclass(frozen=True)
class Part:
    """A slice of a file: `bytes` bytes from `offset`, number `number` of the whole upload."""

    number: int
    path: str
    offset: int
    bytes: int


def parts_of(files: Sequence[dict[str, Any]], part_bytes: int) -> Iterator[Part]:
    """The parts of all files in order, numbered from 1. An empty file has none."""
    number = 0
    for file in files:
        for offset in range(0, file["bytes"], part_bytes):
            number += 1
            yield Part(number, file["path"], offset, min(part_bytes, file["bytes"] - offset))


def part_size(total: int, wanted: int) -> int:
    """The size of parts in bytes: what is wanted, unless that made more than `MOST_PARTS` or parts beyond
    all measure.
    """
    return min(max(wanted, -(-total // MOST_PARTS)), LARGEST_PART)


def announced_digest(header: str | None) -> str:
    """The sha256 (hex) of a Content-Digest header (RFC 9530); raises InvalidRequest."""
    match = _DIGEST.search(header or "")
    try:
        digest = base64.b64decode(match.group(1), validate=True) if match else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InvalidRequest("a part needs the header Content-Digest: sha-256=:<base64 of its sha256>:")
    return digest.hex()


def create(session: Session, call: Call, wanted: UploadCreate) -> Answer:
    """Open an upload. Raises NameInvalid, TooLarge."""
    checked_paths((file.path for file in wanted.files), pointer="/files")
    total = sum(file.bytes for file in wanted.files)
    limit = call.settings.max_upload_bytes
    if total > limit:
        raise TooLarge(f"the files have {total} bytes; the limit is {limit}")
    files = [file.model_dump() for file in wanted.files]
    size = part_size(total, wanted.part_bytes or call.settings.part_bytes)
    upload = Uploads(session, call.tenant).create(
        files=files, part_bytes=size, ttl_seconds=call.settings.upload_ttl
    )
    return Answer(201, describe(upload, frozenset(), ()))


def read(session: Session, tenant: str, upload_id: str) -> dict[str, Any]:
    """One upload: which parts are there. Raises UploadNotFound."""
    uploads = Uploads(session, tenant)
    upload = uploads.get(upload_id)
    received = frozenset(part.number for part in uploads.parts(upload_id))
    return describe(upload, received, Files(session, tenant).of(upload_id))


def describe(upload: Upload, received: frozenset[int], files: Sequence[FileEntry]) -> dict[str, Any]:
    """An upload on the wire."""
    completed = upload.status == "completed"
    parts = [
        {
            "number": part.number,
            "path": part.path,
            "offset": part.offset,
            "bytes": part.bytes,
            "received": completed or part.number in received,
        }
        for part in parts_of(upload.files, upload.part_bytes)
    ]
    return {
        "id": upload.id,
        "status": upload.status,
        "part_bytes": upload.part_bytes,
        "parts": parts,
        "files": file_list(files),
        "expires_at": rfc3339(upload.expires_at),
        "created_at": rfc3339(upload.created_at),
        "completed_at": rfc3339_or_none(upload.completed_at),
    }


def expected_part(session: Session, tenant: str, upload_id: str, number: int) -> Part:
    """The part that is to come. Raises UploadNotFound, UploadClosed, UploadExpired, PartInvalid."""
    upload = Uploads(session, tenant).open(upload_id)
    last = 0
    for part in parts_of(upload.files, upload.part_bytes):
        if part.number == number:
            return part
        last = part.number
    raise PartInvalid(f"upload {upload_id} has the parts 1 to {last}; there is no part {number}")


@dataclass(frozen=True)
class _Whole:
    path: str
    sha256: str | None
    parts: list[Blob]


def _wholes(session: Session, tenant: str, upload_id: str) -> list[_Whole]:
    """What each file is joined from; raises UploadIncomplete and names the parts that are missing."""
    uploads = Uploads(session, tenant)
    upload = uploads.open(upload_id)
    there = {part.number: Blob(part.sha256, part.bytes) for part in uploads.parts(upload_id)}
    wholes = {file["path"]: _Whole(file["path"], file["sha256"], []) for file in upload.files}
    missing = []
    for part in parts_of(upload.files, upload.part_bytes):
        if part.number in there:
            wholes[part.path].parts.append(there[part.number])
        else:
            missing.append(part)
    if missing:
        faults = [
            Fault(f"/parts/{part.number}", f"of {part.path}", "part_missing")
            for part in missing[:_MOST_NAMED]
        ]
        raise UploadIncomplete(f"{len(missing)} parts have not been received", errors=faults)
    return list(wholes.values())


def complete(call: Call, upload_id: str) -> dict[str, Any]:
    """Join the parts of every file and close the upload; does nothing to one that is completed already.

    The joining takes as long as copying does and happens outside of any transaction.
    Raises UploadNotFound, UploadClosed, UploadExpired, UploadIncomplete, DigestMismatch.
    """
    with call.read() as session:
        if Uploads(session, call.tenant).get(upload_id).status == "completed":
            return read(session, call.tenant, upload_id)
        wholes = _wholes(session, call.tenant, upload_id)
    files = [_join(call, index, whole) for index, whole in enumerate(wholes)]
    try:
        with call.write() as session:
            Uploads(session, call.tenant).complete(upload_id, files)
            return read(session, call.tenant, upload_id)
    except UploadClosed:
        # Somebody else may have completed it while we were joining: the outcome is the same.
        with call.read() as session:
            if Uploads(session, call.tenant).get(upload_id).status != "completed":
                raise
            return read(session, call.tenant, upload_id)


def _join(call: Call, index: int, whole: _Whole) -> FileEntry:
    blob = concatenate(call.blobs, whole.parts)
    if whole.sha256 is not None and blob.sha256 != whole.sha256:
        message = (
            f"file {whole.path!r} has the sha256 {blob.sha256}, not the announced one; send its parts again"
        )
        raise DigestMismatch(message, errors=[Fault(f"/files/{index}/sha256", message, DigestMismatch.code)])
    return FileEntry(whole.path, blob.sha256, blob.bytes)


def completed_files(session: Session, tenant: str, upload_id: str) -> Sequence[FileEntry]:
    """The files of a completed upload. Raises UploadNotFound, UploadIncomplete, UploadClosed,
    UploadExpired.
    """
    try:
        upload = Uploads(session, tenant).get(valid_id(upload_id, ids.UPLOAD, UploadNotFound))
    except UploadNotFound as error:
        raise UploadNotFound(error.detail, errors=[Fault("/upload", error.detail, error.code)]) from None
    if upload.status == "open":
        raise UploadIncomplete(f"complete upload {upload_id} first: POST /v1/uploads/{upload_id}/complete")
    if upload.status == "expired":
        raise UploadExpired(f"upload {upload_id} was not completed in time; open a new one")
    if upload.status != "completed":
        raise UploadClosed(f"upload {upload_id} is {upload.status}")
    return Files(session, tenant).of(upload_id)
