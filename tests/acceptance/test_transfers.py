"""Transfers with the real service that are broken off and continued."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from secateur import Client, errors
from tests.acceptance.service import Running
from tests.tiny_models import tiny_llama

PART = 50_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model", layers=4, hidden=64, ffn=128)


class Break(Exception):
    """The user's connection has gone."""


def break_at(share: float) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise Break

    return progress


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_upload_that_was_broken_off_is_continued(client: Client, model: Path) -> None:
    with pytest.raises(Break):
        client.upload_model(model, progress=break_at(0.4), part_bytes=PART)
    seen: list[int] = []
    uploaded = client.upload_model(model, progress=lambda done, total: seen.append(done), part_bytes=PART)
    total = sum(file.bytes for file in uploaded.files)
    assert total * 0.3 < seen[0] < total
    assert uploaded.status == "ready"
    stored = {file.path: file.sha256 for file in uploaded.files}
    local = digests(model)
    assert all(local[path] == sha256 for path, sha256 in stored.items() if path.endswith(".safetensors"))


def test_upload_of_a_killed_process_is_continued(service: Running, model: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from secateur import Client\n"
        "def progress(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(0.05 if done < 0.5 * total else 60)\n"
        "client = Client(sys.argv[1], state_folder=Path(sys.argv[3]))\n"
        f"client.upload_model(sys.argv[2], None, progress, part_bytes={PART})"
    )
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-c", script, service.url, str(model), str(state)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    size = sum(path.stat().st_size for path in model.iterdir())
    while int(process.stdout.readline() or 0) < 0.5 * size:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    seen: list[int] = []
    with Client(service.url, state_folder=state) as client:
        client.upload_model(model, progress=lambda done, total: seen.append(done), part_bytes=PART)
    assert seen[0] >= 0.5 * size


def test_parts_may_come_in_any_order_and_again(service: Running, model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    config = (model / "config.json").read_bytes()
    contents = {"model.safetensors": data, "config.json": config}
    with httpx2.Client(base_url=f"{service.url}/v1", timeout=60) as http:
        files = [{"path": path, "bytes": len(content)} for path, content in contents.items()]
        upload = http.post("/uploads", json={"files": files, "part_bytes": PART}).json()
        assert http.post(f"/uploads/{upload['id']}/complete", json={}).status_code == 409
        parts = [*reversed(upload["parts"]), *upload["parts"][:3]]
        for part in parts:
            piece = contents[part["path"]][part["offset"] : part["offset"] + part["bytes"]]
            digest = http.put(
                f"/uploads/{upload['id']}/parts/{part['number']}",
                content=piece,
                headers={"Content-Digest": content_digest(piece)},
            )
            assert digest.status_code == 200, digest.text
        wrong = http.put(
            f"/uploads/{upload['id']}/parts/1", content=b"x", headers={"Content-Digest": content_digest(b"y")}
        )
        assert 400 <= wrong.status_code < 500
        assert http.post(f"/uploads/{upload['id']}/complete", json={}).status_code == 200
        created = http.post("/models", json={"name": "by parts", "upload": upload["id"]})
        assert created.status_code == 201, created.text
        stored = {file["path"]: file["sha256"] for file in created.json()["files"]}
        assert stored["model.safetensors"] == hashlib.sha256(data).hexdigest()


def content_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_download_that_was_broken_off_is_continued(
    client: Client, service: Running, text: Path, tmp_path: Path
) -> None:
    # Large enough for several network chunks.
    model = tiny_llama(tmp_path / "wide", layers=2, hidden=256, ffn=512, heads=4)
    uploaded = client.upload_model(model)
    wish = {"recipe": "random", "target": {"sparsity": 0.5}, "evaluation": {"measure": []}}
    job = client.submit({"model": uploaded.id, **wish})
    job = client.wait(job.id, timeout=240).raise_for_state()
    out = tmp_path / "out"
    with pytest.raises(Break):
        client.download(job.artifact, out, break_at(0.5))
    partial = [path for path in out.iterdir() if path.name.endswith(".part")]
    assert len(partial) == 1
    kept = partial[0].stat().st_size
    assert kept > 0
    client.download(job.artifact, out)
    artifact = client.artifact(job.artifact or "")
    for file in artifact.files:
        assert hashlib.sha256((out / file.path).read_bytes()).hexdigest() == file.sha256
    assert not list(out.glob(".*"))
    with pytest.raises(errors.InputInvalid, match="no artifact"):
        client.download(None, out)


def test_large_file_goes_through(client: Client, tmp_path: Path) -> None:
    """Many parts at once, more than fit one of the service's own parts."""
    path = tmp_path / "large.txt"
    line = b"the quick brown fox jumps over the lazy dog " * 4 + b"\n"
    with path.open("wb") as stream:
        for _ in range(100):
            stream.write(line * 4000 + b"\n")
    begun = time.monotonic()
    dataset = client.upload_dataset(path)
    assert dataset.bytes == path.stat().st_size
    assert time.monotonic() - begun < 100
    os.unlink(path)
