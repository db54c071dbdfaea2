"""Answers that carry stored files: ranges, validators and digests (RFC 9110, RFC 9530), streamed from the
blob store.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response, StreamingResponse

from service.errors import RangeInvalid

if TYPE_CHECKING:
    from service.blobs import BlobStore

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)
_KINDS = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}


def strong_etag(sha256: str) -> str:
    """The strong validator of a blob."""
    return f'"sha256-{sha256}"'


def repr_digest(sha256: str) -> str:
    """The Repr-Digest header of a whole file, the same on every range of it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes that a Range header asks of a file of `size` bytes; None means all.

    Headers of another unit, malformed ones and several ranges at once are ignored, as RFC 9110 allows.
    Raises RangeInvalid when no byte of the file is asked for.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.group(1)[:20], match.group(2)[:20]
    if not first:
        wanted = min(int(last), size)
        start, end = size - wanted, size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start > end or start >= size:
        raise RangeInvalid(
            f"the file has {size} bytes",
            headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
        )
    return start, end - start + 1


def matches(header: str, etag: str) -> bool:
    """Whether a list of entity tags (weak comparison) holds `etag`, or is `*`."""
    return any(tag.strip().removeprefix("W/") in {etag, "*"} for tag in header.split(","))


def media_type_of(path: str) -> str:
    """The content type of a file by its ending; what is not known to be harmless is bytes."""
    ending = "." + path.rsplit(".", 1)[-1].lower() if "." in path else ""
    guessed = _KINDS.get(ending) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    # A page among the files of a stranger's model must not run as a page of this origin.
    harmless = guessed in {*_KINDS.values(), "application/octet-stream"}
    return guessed if harmless else "application/octet-stream"


def disposition(name: str, kind: str = "attachment") -> str:
    """A Content-Disposition header for any file name (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._\-]", "_", name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def file_response(
    request: Request,
    blobs: BlobStore,
    sha256: str,
    size: int,
    *,
    media_type: str,
    headers: dict[str, str] | None = None,
) -> Response:
    """A stored file, or the part of it that is asked for.

    Answers If-None-Match (304), Range with If-Range (206), HEAD; raises RangeInvalid (416).
    """
    etag = strong_etag(sha256)
    common = {
        "ETag": etag,
        "Repr-Digest": repr_digest(sha256),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        **(headers or {}),
    }
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=common)
    # If-Range needs the strong comparison, and we send no dates that could match.
    whole = request.headers.get("if-range", etag) != etag
    part = None if whole else requested_range(request.headers.get("range"), size)
    start, length = part or (0, size)
    if part:
        common["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    common["Content-Length"] = str(length)
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=common, media_type=media_type)
    content = stream_blob(blobs, sha256, start, length)
    return StreamingResponse(content, status_code=status, headers=common, media_type=media_type)


def stream_blob(blobs: BlobStore, sha256: str, start: int, length: int) -> AsyncIterator[bytes]:
    """The bytes of a blob in pieces, each read in a thread; nothing is held between two pieces."""
    pieces: Iterator[bytes] = iter(blobs.read(sha256, start, length))
    return iterate_in_threadpool(pieces)
