"""Fetching files so that an interruption costs nothing: ranges, a sha256 check, and a rename at the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx2

from secateur import errors
from secateur.connection import PASSING_STATUSES, Connection
from secateur.types import File

BytesDone = Callable[[int, int], None]


class Downloader:
    """Fetches the files below one address of the service into a folder."""

    def __init__(self, connection: Connection, base: str, progress: BytesDone | None = None) -> None:
        self._connection = connection
        self._base = base.rstrip("/")
        self._progress = progress
        self._total = 0
        self._finished = 0

    def run(self, files: Sequence[File], folder: Path) -> list[Path]:
        """Fetch all files; those already there with the right sha256 are left as they are.

        Raises: TransferCorrupted, ApiError, ServiceUnreachable, InputInvalid (folder cannot be written).
        """
        self._total = sum(file.bytes for file in files)
        self._finished = 0
        targets = [(file, _inside(folder, file.path)) for file in files]
        try:
            for file, target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(file, target)
                self._finished += file.bytes
                self._report(0)
        except OSError as error:
            raise errors.InputInvalid(
                f"{error.filename or folder} cannot be written: {error.strerror or error}"
            ) from error
        return [target for _, target in targets]

    def _fetch(self, file: File, target: Path) -> None:
        if (
            target.is_file()
            and target.stat().st_size == file.bytes
            and _sha256(target).hexdigest() == file.sha256
        ):
            return
        partial = target.with_name(f".{target.name}.{file.sha256[:8]}.part")
        for last_try in (False, True):
            self._complete(file, partial)
            if _sha256(partial).hexdigest() == file.sha256:
                break
            partial.unlink()
            if last_try:
                raise errors.TransferCorrupted(
                    f"{file.path} does not have the announced sha256, also after fetching it again."
                )
        partial.replace(target)
        _sync_folder(target.parent)

    def _complete(self, file: File, partial: Path) -> None:
        """Append to the partial file until it has all bytes."""
        attempt = 0
        while True:
            have = _size(partial)
            if have == file.bytes and partial.exists():
                return
            try:
                self._stream(file, partial, have)
                failure: Exception = httpx2.ReadError("the connection closed early")
            except httpx2.TransportError as error:
                failure = error
            except errors.ApiError as error:
                if error.status == 416:
                    partial.unlink(missing_ok=True)
                elif error.status not in PASSING_STATUSES:
                    raise
                failure = error
            now = _size(partial)
            if now == file.bytes and partial.exists():
                return
            if now > file.bytes:
                partial.unlink()
            attempt = 0 if have < now < file.bytes else attempt + 1
            if attempt >= self._connection.attempts.count:
                raise (
                    failure
                    if isinstance(failure, errors.SecateurError)
                    else self._connection.unreachable(failure)
                )
            self._connection.pause(attempt)

    def _stream(self, file: File, partial: Path, have: int) -> None:
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._connection.stream(f"{self._base}/{quote(file.path)}", headers=headers) as response:
            resumed = response.status_code == 206 and _starts_at(response, have)
            done = have if resumed else 0
            with partial.open("ab" if resumed else "wb") as stream:
                # Unbuffered: whatever has arrived before a break is kept.
                for chunk in response.iter_raw():
                    stream.write(chunk)
                    done += len(chunk)
                    self._report(min(done, file.bytes))
                stream.flush()
                os.fsync(stream.fileno())

    def _report(self, within: int) -> None:
        if self._progress:
            self._progress(self._finished + within, self._total)


def _inside(folder: Path, path: str) -> Path:
    """The place of a service path below a local folder, and never outside of it."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise errors.AnswerNotUnderstood(f"The service announced a file with the unusable path {path!r}.")
    return folder.joinpath(*pure.parts)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _starts_at(response: httpx2.Response, offset: int) -> bool:
    return response.headers.get("content-range", "").replace(" ", "").startswith(f"bytes{offset}-")


def _sha256(path: Path) -> hashlib._Hash:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
