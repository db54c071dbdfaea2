"""The gateway starts quickly, knows no torch, and streams: big files do not make it big."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service import schema
from service.settings import Settings
from tests.api.gateway import content_digest

MIB = 1024 * 1024
SIZE = 256 * MIB
GROWTH = 64 * MIB
FORBIDDEN = {
    "torch",
    "transformers",
    "celery",
    "kombu",
    "alembic",
    "obstore",
    "numpy",
    "safetensors",
    "tokenizers",
}


def test_imports_only_what_its_start_needs() -> None:
    program = "import sys, service.app; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not FORBIDDEN & set(done.stdout.split())


class Process:
    """A gateway as it is started in production."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, auth="off")
        home.mkdir(parents=True, exist_ok=True)
        schema.upgrade(self.settings.database_url)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        environment = {**os.environ, "SECATEUR_HOME": str(home), "SECATEUR_AUTH": "off"}
        self.log = (home / "log").open("wb")
        started = time.monotonic()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "service", "gateway", "--fd", str(self.listener.fileno())],
            env=environment,
            pass_fds=[self.listener.fileno()],
            stdout=self.log,
            stderr=self.log,
        )
        assert self.get("/livez") == {"status": "ok"}
        self.seconds = time.monotonic() - started
        times = psutil.Process(self.child.pid).cpu_times()
        self.cpu_seconds = times.user + times.system

    def get(self, path: str) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return dict(answer)

    def send(
        self, method: str, path: str, pieces: Iterator[bytes], headers: dict[str, str]
    ) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
        connection.request(
            method, path, body=pieces, headers=headers, encode_chunked="Content-Length" not in headers
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return {"status_code": response.status, **answer}

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.child.pid).memory_info().rss)

    def peak(self) -> int:
        """Largest number of resident bytes so far."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def close(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)
        self.listener.close()
        self.log.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path / "home")
    yield running
    running.close()


def test_starts_in_two_seconds(process: Process) -> None:
    # Other tests share the machine, so the clock says less than the work done.
    assert process.cpu_seconds < 2, f"{process.seconds:.2f} s by the clock"


def weights(size: int = SIZE) -> Iterator[bytes]:
    """A safetensors file of one tensor, made while it is sent."""
    rows = size // 4096
    header = json.dumps({"weight": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}})
    padded = header.encode() + b" " * (-len(header) % 8)
    yield len(padded).to_bytes(8, "little") + padded
    block = bytes(range(256)) * 4096
    for number in range(rows * 4096 // MIB):
        yield number.to_bytes(8, "little") + block[8:]


def test_form_is_streamed(process: Process) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nbig\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="files"; filename="model.safetensors"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        yield from weights()
        yield b"\r\n--b--\r\n"

    process.get("/readyz")
    before = process.memory()
    answer = process.send("POST", "/v1/models", body(), {"Content-Type": "multipart/form-data; boundary=b"})
    # A weight file alone is no model; it was stored and looked at all the same.
    assert answer["status_code"] == 422, answer
    assert process.peak() - before < GROWTH
    stored = [path for path in (process.settings.home / "blobs" / "objects").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in stored) > SIZE


def test_parts_are_streamed(process: Process) -> None:
    digest, size = hashlib.sha256(), 0
    for piece in weights():
        digest.update(piece)
        size += len(piece)
    files = [{"path": "model.safetensors", "bytes": size, "sha256": digest.hexdigest()}]
    opened = process.send(
        "POST",
        "/v1/uploads",
        iter([json.dumps({"files": files}).encode()]),
        {"Content-Type": "application/json"},
    )
    content = b"".join(weights())
    before = process.memory()
    parts = opened["parts"]
    assert isinstance(parts, list)
    for part in parts[::-1]:
        piece = content[part["offset"] : part["offset"] + part["bytes"]]
        headers = {**content_digest(piece), "Content-Length": str(len(piece))}
        path = f"/v1/uploads/{opened['id']}/parts/{part['number']}"
        assert process.send("PUT", path, iter([piece]), headers)["status_code"] == 200
    done = process.send("POST", f"/v1/uploads/{opened['id']}/complete", iter([]), {"Content-Length": "0"})
    assert done["status"] == "completed", done
    assert process.peak() - before < GROWTH
