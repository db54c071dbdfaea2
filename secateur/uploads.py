"""Sending files in numbered parts: several at a time, each with its sha256, continuing an earlier try."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import errors
from secateur.connection import Connection, idempotency_key
from secateur.folders import CHUNK, LocalFile

BytesDone = Callable[[int, int], None]


SLOW = 900.0
"""Seconds that the service may take to put many gigabytes together and look through them."""


@dataclass(frozen=True)
class Part:
    """A slice of one file: `offset` and `bytes` within the file at `path`."""

    number: int
    path: str
    offset: int
    bytes: int
    received: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        return cls(
            int(data["number"]),
            str(data["path"]),
            int(data["offset"]),
            int(data["bytes"]),
            bool(data.get("received")),
        )


class UploadNotes:
    """What an interrupted upload needs to be continued by another process: its id and its idempotency keys.

    One small file per (service, kind, name, content) in the user's state folder, removed at the end.
    """

    def __init__(
        self, url: str, kind: str, name: str, files: Sequence[LocalFile], folder: Path | None = None
    ) -> None:
        content = [[file.path, file.bytes, file.sha256] for file in files]
        digest = hashlib.sha256(json.dumps([url, kind, name, content]).encode()).hexdigest()
        self.path = (folder or state_folder()) / "uploads" / f"{digest[:32]}.json"
        self.upload_id: str | None = None
        self.open_key = idempotency_key()
        self.create_key = idempotency_key()
        self._read()

    def save(self) -> None:
        """Write the notes; a folder that cannot be written only costs the continuation."""
        data = {"upload": self.upload_id, "open_key": self.open_key, "create_key": self.create_key}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self.path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            temporary.write_text(json.dumps(data))
            temporary.replace(self.path)

    def forget(self) -> None:
        """Remove the notes and start with fresh keys."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.upload_id = None
        self.open_key = idempotency_key()
        self.create_key = idempotency_key()

    def _read(self) -> None:
        try:
            data = json.loads(self.path.read_text())
            self.open_key, self.create_key = str(data["open_key"]), str(data["create_key"])
            self.upload_id = data["upload"]
        except (OSError, ValueError, KeyError, TypeError):
            return


def state_folder() -> Path:
    """Where this user's programs keep state between runs."""
    home = os.environ.get("XDG_STATE_HOME")
    if home:
        return Path(home) / "secateur"
    try:
        return Path.home() / ".local" / "state" / "secateur"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"secateur-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


class Uploader:
    """Sends one set of files and completes the upload.

    Args: `parallel` parts are sent at a time; `rounds` without any new part received end the attempt.
    """

    def __init__(
        self,
        connection: Connection,
        files: Sequence[LocalFile],
        notes: UploadNotes,
        *,
        progress: BytesDone | None = None,
        part_bytes: int | None = None,
        parallel: int = 3,
        rounds: int = 3,
    ) -> None:
        self._connection = connection
        self._files = {file.path: file for file in files}
        self._notes = notes
        self._progress = progress
        self._part_bytes = part_bytes
        self._parallel = parallel
        self._rounds = rounds
        self._total = sum(file.bytes for file in files)
        self._done = 0
        self._give_up = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> str:
        """Send everything and return the id of the completed upload.

        Raises: ApiError, ServiceUnreachable; the notes then stay, and another run continues.
        """
        upload = self._open()
        idle = 0
        while upload.get("status") == "open":
            parts = [Part.from_json(item) for item in upload["parts"]]
            missing = [part for part in parts if not part.received]
            self._report(sum(part.bytes for part in parts) - sum(part.bytes for part in missing))
            failure = self._send(upload["id"], missing) if missing else None
            if failure is None:
                try:
                    address = f"/v1/uploads/{upload['id']}/complete"
                    self._connection.json("POST", address, body={}, timeout=SLOW)
                    break
                except errors.Conflict as error:
                    failure = error
            upload = self._connection.json("GET", f"/v1/uploads/{upload['id']}")
            still = sum(1 for item in upload.get("parts", []) if not item.get("received"))
            idle = idle + 1 if still >= len(missing) else 0
            if upload.get("status") == "open" and (idle >= self._rounds or not _passing(failure)):
                raise failure
        self._report(self._total)
        return str(upload["id"])

    def _open(self) -> dict[str, Any]:
        known = self._notes.upload_id
        if known:
            try:
                upload = self._connection.json("GET", f"/v1/uploads/{known}")
                if upload.get("status") in {"open", "completed"}:
                    return upload
            except errors.NotFound:
                pass
            self._notes.forget()
        self._notes.save()
        body: dict[str, Any] = {
            "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in self._files.values()]
        }
        if self._part_bytes:
            body["part_bytes"] = self._part_bytes
        upload = self._connection.json(
            "POST", "/v1/uploads", body=body, headers={"Idempotency-Key": self._notes.open_key}
        )
        self._notes.upload_id = str(upload["id"])
        self._notes.save()
        # A repeated POST is answered as the first one was, so ask what has arrived since.
        return self._connection.json("GET", f"/v1/uploads/{upload['id']}")

    def _send(self, upload_id: str, parts: Sequence[Part]) -> errors.SecateurError | None:
        """Send parts in parallel; the first failure stops the rest and is returned."""
        self._give_up.clear()
        pool = ThreadPoolExecutor(max_workers=self._parallel, thread_name_prefix="secateur-part")
        running = [pool.submit(self._send_part, upload_id, part) for part in parts]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            # Interrupted by the user: running parts end at their next chunk, nobody waits for them.
            self._give_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown(wait=True, cancel_futures=True)
        for future in running:
            failure = None if future.cancelled() else future.exception()
            if isinstance(failure, errors.SecateurError):
                return failure
            if failure is not None:
                raise failure
        return None

    def _send_part(self, upload_id: str, part: Part) -> None:
        source = self._files[part.path].source
        digest = hashlib.sha256()
        for chunk in _slice(source, part.offset, part.bytes):
            digest.update(chunk)
        self._connection.json(
            "PUT",
            f"/v1/uploads/{upload_id}/parts/{part.number}",
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(part.bytes),
                "Content-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
            },
            content=lambda: self._body(source, part),
            timeout=120.0,
            give_up=self._give_up,
        )
        with self._lock:
            self._report(self._done + part.bytes)

    def _body(self, source: Path, part: Part) -> Iterator[bytes]:
        for chunk in _slice(source, part.offset, part.bytes):
            if self._give_up.is_set():
                raise errors.InputInvalid("The upload was interrupted.")
            yield chunk

    def _report(self, done: int) -> None:
        self._done = done
        if self._progress:
            self._progress(done, self._total)


def _passing(failure: errors.SecateurError) -> bool:
    """Whether another round may help: the service was away, or a part did not arrive whole."""
    if isinstance(failure, errors.ApiError):
        return failure.status >= 500 or failure.status in {409, 429} or "digest" in failure.code
    return isinstance(failure, errors.ServiceUnreachable)


def _slice(source: Path, offset: int, length: int) -> Iterator[bytes]:
    """The bytes [offset, offset + length) of a file, in pieces of at most 1 MiB.

    Raises: InputInvalid when the file has become shorter.
    """
    with source.open("rb") as stream:
        stream.seek(offset)
        left = length
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise errors.InputInvalid(f"{source} became shorter while it was being sent.")
            left -= len(chunk)
            yield chunk
