"""A small real HTTP server that speaks the client's part of the protocol and misbehaves on demand.

It keeps uploads, one artifact and jobs in memory. `Trouble` entries are used up one by one, before a request
with a matching method and path is answered: a status with a problem document, a dropped connection, a cut
body, wrong bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Trouble:
    """What happens to the next request that fits: `kind` is a status number, drop, cut, garble or silence."""

    method: str
    path: str
    kind: int | str
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    after: int = 0


class CrookedServer:
    """State and behaviour; `log` lists every request as (method, path, headers)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.troubles: list[Trouble] = []
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.uploads: dict[str, dict[str, Any]] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        self.part_bytes = 1000
        self.streams = True
        self.url = ""
        self._server: ThreadingHTTPServer | None = None

    def trouble(self, method: str, path: str, kind: int | str, **more: Any) -> None:
        self.troubles.append(Trouble(method, path, kind, **more))

    def refuse_parts(self, after: int, kind: int | str = 503) -> None:
        """From now on take some parts, then no more."""
        self.trouble("PUT", "/parts/", kind, after=after)
        for _ in range(500):
            self.trouble("PUT", "/parts/", kind)

    def requests(self, method: str, path: str) -> list[dict[str, str]]:
        with self.lock:
            return [headers for m, p, headers in self.log if m == method and re.search(path, p)]

    def start(self, port: int = 0) -> None:
        crooked = self

        class Handler(_Handler):
            state = crooked

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def crooked() -> Iterator[CrookedServer]:
    server = CrookedServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Handler(BaseHTTPRequestHandler):
    state: CrookedServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        path = self.path.split("?")[0]
        with self.state.lock:
            self.state.log.append((self.command, self.path, dict(self.headers)))
            trouble = next(
                (t for t in self.state.troubles if t.method == self.command and re.search(t.path, self.path)),
                None,
            )
            if trouble and trouble.after > 0:
                trouble.after -= 1
                trouble = None
            elif trouble:
                self.state.troubles.remove(trouble)
        if trouble and trouble.kind == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if trouble and trouble.kind == "silence":
            time.sleep(3)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if trouble and isinstance(trouble.kind, int):
            document = trouble.body or {
                "code": "trouble",
                "title": "Trouble",
                "detail": "Trouble was ordered.",
            }
            self._answer(trouble.kind, {"status": trouble.kind, **document}, trouble.headers)
            return
        parts = path.strip("/").split("/")
        try:
            self._route(parts, body, trouble)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str], body: bytes, trouble: Trouble | None) -> None:
        state = self.state
        match self.command, parts:
            case "POST", ["v1", "uploads"]:
                self._open(json.loads(body))
            case "GET", ["v1", "uploads", upload] if upload in state.uploads:
                self._answer(200, self._upload(upload))
            case "PUT", ["v1", "uploads", upload, "parts", number]:
                self._part(upload, int(number), body)
            case "POST", ["v1", "uploads", upload, "complete"]:
                self._complete(upload)
            case "POST", ["v1", ("models" | "datasets" | "jobs") as kind]:
                self._create(kind, json.loads(body))
            case "GET", ["v1", "jobs", job, "events"]:
                self._events(job, trouble)
            case "GET", ["v1", "jobs", job] if job in state.jobs:
                self._answer(200, state.jobs[job])
            case "GET", ["v1", "artifacts", "art_1"]:
                files = [
                    {"path": p, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()}
                    for p, b in state.files.items()
                ]
                self._answer(200, {"id": "art_1", "job": "job_1", "format": "safetensors", "files": files})
            case "GET", ["v1", "artifacts", "art_1", "files", *path]:
                self._file("/".join(path), trouble)
            case _:
                self._answer(404, {"code": "not_found", "detail": f"There is no {self.path}."})

    def _open(self, wish: dict[str, Any]) -> None:
        key = self.headers["Idempotency-Key"]
        with self.state.lock:
            if key not in self.state.created:
                upload = f"upl_{len(self.state.uploads) + 1}"
                self.state.uploads[upload] = {"files": wish["files"], "status": "open"}
                self.state.created[key] = self._upload(upload)
            self._answer(201, self.state.created[key])

    def _upload(self, upload: str) -> dict[str, Any]:
        record, parts, size = self.state.uploads[upload], [], self.state.part_bytes
        for file in record["files"]:
            for offset in range(0, file["bytes"], size):
                number = len(parts) + 1
                parts.append(
                    {
                        "number": number,
                        "path": file["path"],
                        "offset": offset,
                        "bytes": min(size, file["bytes"] - offset),
                        "received": (upload, number) in self.state.parts,
                    }
                )
        return {"id": upload, "status": record["status"], "part_bytes": size, "parts": parts}

    def _part(self, upload: str, number: int, body: bytes) -> None:
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if self.headers["Content-Digest"] != f"sha-256=:{digest}:":
            self._answer(400, {"code": "digest_mismatch", "detail": "The part did not arrive whole."})
            return
        with self.state.lock:
            self.state.parts[upload, number] = body
        self._answer(200, {"number": number})

    def _complete(self, upload: str) -> None:
        view = self._upload(upload)
        if not all(part["received"] for part in view["parts"]):
            self._answer(409, {"code": "parts_missing", "detail": "Parts are missing."})
            return
        self.state.uploads[upload]["status"] = "completed"
        self._answer(200, self._upload(upload))

    def _create(self, kind: str, wish: dict[str, Any]) -> None:
        key = self.headers["Idempotency-Key"]
        with self.state.lock:
            if key not in self.state.created:
                number = len(self.state.created) + 1
                made = {
                    "id": f"{kind[:3]}_{number}",
                    "name": wish.get("name"),
                    "status": "ready",
                    "state": "queued",
                }
                self.state.created[key] = made
            self._answer(201, self.state.created[key])

    def _file(self, path: str, trouble: Trouble | None) -> None:
        content = self.state.files[path]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted and start >= len(content):
            self._answer(416, {"code": "range", "detail": "Nothing there."})
            return
        rest = content[start:]
        if trouble and trouble.kind == "garble":
            rest = bytes(b ^ 0xFF for b in rest)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if trouble and trouble.kind == "cut":
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(rest)

    def _events(self, job: str, trouble: Trouble | None) -> None:
        after = int(self.headers.get("Last-Event-ID") or 0)
        events = [event for event in self.state.events.get(job, []) if event[0] > after]
        if "text/event-stream" not in (self.headers.get("Accept") or ""):
            data = [{"sequence": n, "type": t, "data": d, "at": "2026-01-01T00:00:00Z"} for n, t, d in events]
            self._answer(200, {"data": data, "has_more": False, "next": None})
            return
        if not self.state.streams:
            self._answer(200, {"data": []})
            return
        if not events:
            self.send_response(204)
            self.end_headers()
            return
        if trouble and trouble.kind == "cut":
            events = events[: len(events) // 2]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, kind, data in events:
            self.wfile.write(f": ping\n\nid: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()
        self.close_connection = True

    def _answer(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        kind = "application/problem+json" if status >= 400 else "application/json"
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
