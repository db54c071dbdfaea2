"""Reads a multipart/form-data body part by part straight into the blob store.

Neither the body nor a file of it is ever whole in memory or in a temporary file: bytes go from the socket
through the parser into a blob writer, at most `BATCH` bytes at a time, and the writing happens in a worker
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import python_multipart as multipart
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import TooLarge
from service.names import checked_path
from service.problems import FormInvalid

if TYPE_CHECKING:
    from service.blobs import BlobStore, BlobWriter

BATCH = 1024 * 1024
LONGEST_FIELD = 64 * 1024
MOST_WAITING = 64
MOST_FILES = 2000


@dataclass(frozen=True)
class StoredFile:
    """A file that lies in the blob store: its path as sent, its sha256 (hex) and its size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass
class Form:
    """A received form: plain fields, and files that are blobs by now, in the order of the body."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[StoredFile] = field(default_factory=list)


class _Sink:
    """Takes the parser's callbacks; queues what is to be written, so that a thread can write it."""

    def __init__(
        self, blobs: BlobStore, file_fields: frozenset[str], text_fields: frozenset[str], limit: int
    ) -> None:
        self.form = Form()
        self.pending: list[Callable[[], None]] = []
        self.waiting = 0
        self.ended = False
        self._blobs, self._file_fields, self._text_fields, self._limit = (
            blobs,
            file_fields,
            text_fields,
            limit,
        )
        self._paths: set[str] = set()
        self._writer: BlobWriter | None = None
        self._total = 0
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._path: str | None = None
        self._text = bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._reset,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }

    def _on_end(self) -> None:
        self.ended = True

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            self._begin_text()
            return
        if self._name not in self._file_fields:
            raise FormInvalid(
                f"form field {self._name!r} holds a file; files go into {_listed(self._file_fields)}"
            )
        if len(self._paths) >= MOST_FILES:
            raise FormInvalid(f"more than {MOST_FILES} files in one form")
        self._path = checked_path(options[b"filename"].decode("utf-8", "replace"), pointer=f"/{self._name}")
        if self._path.casefold() in self._paths:
            raise FormInvalid(f"file {self._path!r} is in the form twice (case does not tell names apart)")
        self._paths.add(self._path.casefold())
        self.pending.append(self._open)

    def _begin_text(self) -> None:
        if self._name in self._file_fields:
            raise FormInvalid(f"form field {self._name!r} needs a file name: send it as a file")
        if self._name not in self._text_fields:
            known = self._text_fields | self._file_fields
            raise FormInvalid(f"unknown form field {self._name!r}; the fields are {_listed(known)}")
        if self._name in self.form.fields:
            raise FormInvalid(f"form field {self._name!r} is given twice")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._path is None:
            if len(self._text) + end - start > LONGEST_FIELD:
                raise FormInvalid(f"form field {self._name!r} is longer than {LONGEST_FIELD} bytes")
            self._text += data[start:end]
            return
        self._total += end - start
        if self._total > self._limit:
            raise TooLarge(f"the files are larger than the limit of {self._limit} bytes")
        piece = data[start:end]
        self.waiting += len(piece)
        self.pending.append(lambda: self._write(piece))

    def _on_part_end(self) -> None:
        if self._path is None:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")
            return
        path = self._path
        self.pending.append(lambda: self._close(path))

    def _open(self) -> None:
        self._writer = self._blobs.writer()

    def _write(self, piece: bytes) -> None:
        assert self._writer is not None
        self._writer.write(piece)

    def _close(self, path: str) -> None:
        assert self._writer is not None
        blob = self._writer.commit()
        self._writer = None
        self.form.files.append(StoredFile(path, blob.sha256, blob.bytes))

    def flush(self) -> None:
        """Do the queued writes (in a thread: they touch the disk)."""
        pending, self.pending, self.waiting = self.pending, [], 0
        for step in pending:
            step()

    def abort(self) -> None:
        """Throw away the file that is half written; whole ones nobody refers to are collected later."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def _listed(names: frozenset[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def boundary_of(request: Request) -> bytes | None:
    """The boundary of a request with multipart/form-data, else None; raises FormInvalid without one."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        return None
    boundary = options.get(b"boundary")
    if not boundary:
        raise FormInvalid("multipart/form-data without a boundary")
    return boundary


async def receive_form(
    request: Request,
    blobs: BlobStore,
    *,
    file_fields: frozenset[str],
    text_fields: frozenset[str],
    limit: int,
) -> Form:
    """Read the whole body of `request` into blobs; `limit` is the sum of all files in bytes.

    Raises FormInvalid (malformed, unknown or doubled fields, bad file names) and TooLarge.
    """
    sink = _Sink(blobs, file_fields, text_fields, limit)
    try:
        parser = multipart.MultipartParser(boundary_of(request) or b"", sink.callbacks())  # type: ignore[arg-type]
        async for chunk in request.stream():
            parser.write(chunk)
            if sink.waiting >= BATCH or len(sink.pending) >= MOST_WAITING:
                await anyio.to_thread.run_sync(sink.flush)
        parser.finalize()
        if not sink.ended:
            raise FormInvalid("the form ends before its closing boundary")
        await anyio.to_thread.run_sync(sink.flush)
    except FormParserError as error:
        raise FormInvalid(f"malformed multipart body: {error}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(sink.abort)
    return sink.form
