"""A gateway over real HTTP for tests: uvicorn in a thread, and clients that check every answer they get."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from service.app import create_app
from service.blobs import BlobStore
from service.db import Database
from service.files.repository import FileEntry
from service.jobs.repository import NewEvent
from service.keys.repository import Keys
from service.leases.repository import Lease, Leases, NewArtifact
from service.problems import MEDIA_TYPE
from service.settings import Settings
from service.tenants.repository import Tenants

# Reading the certificates of the system takes longer than most tests, and nothing here speaks TLS.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

PROBLEM_KEYS = {"type", "title", "status", "detail", "code", "request_id"}


class Contract:
    """What every answer must keep: problems are problem documents, JSON answers are what OpenAPI says."""

    def __init__(self, app: FastAPI) -> None:
        self._document = json.loads(json.dumps(app.openapi()))
        self.breaches: list[str] = []
        self.checked = 0

    def check(self, response: httpx2.Response) -> None:
        """Note what is wrong with an answer; the fixture that watches fails the test for it."""
        self.checked += 1
        where = f"{response.request.method} {response.request.url.path} -> {response.status_code}"
        if "x-request-id" not in response.headers:
            self.breaches.append(f"{where}: no X-Request-Id")
        if response.status_code >= 400:
            response.read()
            self.breaches.extend(f"{where}: {fault}" for fault in _problem_faults(response))
        elif response.headers.get("content-type", "") == "application/json":
            response.read()
            self.breaches.extend(f"{where}: {fault}" for fault in self._schema_faults(response))

    def _schema_faults(self, response: httpx2.Response) -> Iterator[str]:
        operation = self._operation(response.request.method, response.request.url.path)
        if operation is None:
            return
        documented = operation["responses"].get(str(response.status_code))
        if documented is None:
            yield "this status is not documented"
            return
        schema = documented.get("content", {}).get("application/json", {}).get("schema")
        if schema:
            whole = {**schema, "components": self._document["components"]}
            for error in Draft202012Validator(whole).iter_errors(response.json()):
                yield f"{error.json_path}: {error.message[:200]}"

    def _operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        parts = path.split("/")
        for template, operations in self._document["paths"].items():
            pattern = template.split("/")
            same = len(pattern) == len(parts) and all(
                ours.startswith("{") or ours == theirs for ours, theirs in zip(pattern, parts, strict=True)
            )
            if same and "{path}" not in template:
                return operations.get(method.lower())
        return None


def _problem_faults(response: httpx2.Response) -> Iterator[str]:
    if response.headers.get("content-type") != MEDIA_TYPE:
        yield f"a {response.headers.get('content-type')} is no problem document"
        return
    if response.request.method == "HEAD":
        return
    document = response.json()
    if not set(document) >= PROBLEM_KEYS or not set(document) <= PROBLEM_KEYS | {"errors"}:
        yield f"members are {sorted(document)}"
    if document.get("status") != response.status_code:
        yield f"status is {document.get('status')}"
    if document.get("request_id") != response.headers.get("x-request-id"):
        yield "request_id is not that of the header"
    if not all(isinstance(document.get(key), str) and document[key] for key in PROBLEM_KEYS - {"status"}):
        yield f"empty members: {document}"
    for fault in document.get("errors", ()):
        if set(fault) != {"pointer", "message", "code"} or not fault["message"]:
            yield f"fault {fault}"


@dataclass
class Gateway:
    """A running gateway, and its inside for what only workers and operators do."""

    url: str
    app: FastAPI
    settings: Settings
    contract: Contract
    clients: list[httpx2.Client] = field(default_factory=list)

    @property
    def database(self) -> Database:
        found: Database = self.app.state.database
        return found

    @property
    def blobs(self) -> BlobStore:
        found: BlobStore = self.app.state.blobs
        return found

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client whose answers are all checked."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        made = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=30,
            trust_env=False,
            verify=NO_TLS,
            event_hooks={"response": [self.contract.check]},
        )
        self.clients.append(made)
        return made

    def tenant(self) -> tuple[str, str]:
        """A fresh tenant and a key of it."""
        with self.database.session() as session:
            tenant = Tenants(session).create("test").id
            _, secret = Keys(session, tenant).create("test")
        return tenant, secret

    def caller(self) -> httpx2.Client:
        """A client of a fresh tenant."""
        return self.client(self.tenant()[1])

    def claim(self, job_id: str, seconds: float = 600) -> Lease:
        """Take a job as a worker does."""
        with self.database.session() as session:
            lease = Leases(session).claim(job_id, "test", seconds)
        assert lease is not None
        return lease

    def event(self, lease: Lease, kind: str, **data: Any) -> None:
        """Append an event as a worker does."""
        with self.database.session() as session:
            Leases(session).append_events(lease, [NewEvent(kind, data)])

    def store(self, path: str, content: bytes) -> FileEntry:
        """A file in the blob store."""
        with self.blobs.writer() as writer:
            writer.write(content)
            blob = writer.commit()
        return FileEntry(path, blob.sha256, blob.bytes)

    def succeed(self, lease: Lease, files: Mapping[str, bytes]) -> str:
        """End a job well, as a worker does; returns the id of its artifact."""
        report = self.store("report.json", b'{"schema":"secateur.report/1"}')
        page = self.store("report.html", b"<!doctype html><title>Report</title>")
        stored = [self.store(path, content) for path, content in files.items()]
        with self.database.session() as session:
            return Leases(session).succeed(
                lease,
                result={"summary": {"sparsity": 0.5}},
                artifact=NewArtifact("safetensors", {"version": 1}, stored),
                report_sha256=report.sha256,
                report_html_sha256=page.sha256,
            )

    def close(self) -> None:
        for client in self.clients:
            client.close()


@contextmanager
def serve(settings: Settings) -> Iterator[Gateway]:
    """Run a gateway on a free port until the block ends."""
    app = create_app(settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=2, http="httptools", loop="uvloop"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    gateway = Gateway(f"http://127.0.0.1:{listener.getsockname()[1]}", app, settings, Contract(app))
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            assert time.monotonic() < deadline, "the gateway takes too long to start"
            time.sleep(0.01)
        yield gateway
    finally:
        gateway.close()
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive(), "the gateway did not stop"


def content_digest(content: bytes) -> dict[str, str]:
    """The header that goes with a part."""
    encoded = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return {"Content-Digest": f"sha-256=:{encoded}:"}


def form_files(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a folder as the `files` of a form."""
    return [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]


def send_upload(
    client: httpx2.Client, files: Mapping[str, bytes], *, part_bytes: int = 1 << 20, order: int = 1
) -> str:
    """Upload files in parts, forwards or backwards (`order=-1`), and complete; returns the id."""
    announced = [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]
    opened = client.post("/v1/uploads", json={"files": announced, "part_bytes": part_bytes})
    assert opened.status_code == 201, opened.text
    upload = opened.json()
    for part in upload["parts"][::order]:
        assert put_part(client, upload["id"], part, files).status_code == 200
    done = client.post(f"/v1/uploads/{upload['id']}/complete")
    assert done.status_code == 200, done.text
    return str(upload["id"])


def put_part(
    client: httpx2.Client, upload_id: str, part: Mapping[str, Any], files: Mapping[str, bytes]
) -> httpx2.Response:
    """Send one part."""
    content = files[part["path"]][part["offset"] : part["offset"] + part["bytes"]]
    return client.put(
        f"/v1/uploads/{upload_id}/parts/{part['number']}", content=content, headers=content_digest(content)
    )


def events_of(lines: Sequence[str]) -> list[dict[str, str]]:
    """Server-sent events out of the lines of a stream; comments are left out."""
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in current:
                found.append(current)
            current = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            current[name] = value
    return found
