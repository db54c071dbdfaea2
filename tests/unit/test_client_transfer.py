"""Uploads and downloads of the client against a server that drops, cuts, garbles and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur import Attempts, Client, errors
from tests.unit.crooked_server import CrookedServer, crooked

QUICK = Attempts(count=5, first=0.001, longest=0.01)


@pytest.fixture
def server() -> Iterator[CrookedServer]:
    with crooked() as running:
        yield running


@pytest.fixture
def client(server: CrookedServer, tmp_path: Path) -> Iterator[Client]:
    with Client(server.url, attempts=QUICK, state_folder=tmp_path / "state") as connected:
        yield connected


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(10_500))
    (folder / "README.md").write_text("stays here")
    return folder


def received(server: CrookedServer, upload: str = "upl_1") -> bytes:
    numbers = sorted(number for name, number in server.parts if name == upload)
    return b"".join(server.parts[upload, number] for number in numbers)


def whole(model: Path) -> bytes:
    return (model / "config.json").read_bytes() + (model / "model.safetensors").read_bytes()


def test_upload_sends_every_part_once_with_progress(
    server: CrookedServer, client: Client, model: Path
) -> None:
    seen: list[tuple[int, int]] = []
    uploaded = client.upload_model(model, progress=lambda done, total: seen.append((done, total)))
    assert uploaded.name == "model"
    assert received(server) == whole(model)
    assert len(server.requests("PUT", "/parts/")) == 12
    assert seen[-1] == (10_502, 10_502)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_upload_survives_dropped_connections_and_passing_statuses(
    server: CrookedServer, client: Client, model: Path
) -> None:
    server.trouble("POST", "/v1/uploads$", "drop")
    server.trouble("PUT", "/parts/3", "drop")
    server.trouble("PUT", "/parts/5", 503, headers={"Retry-After": "0"})
    server.trouble("PUT", "/parts/7", 502)
    server.trouble("POST", "/complete", 504)
    server.trouble("POST", "/v1/models", "drop")
    client.upload_model(model)
    assert received(server) == whole(model)
    assert len(server.uploads) == 1
    keys = {headers["Idempotency-Key"] for headers in server.requests("POST", "/v1/models")}
    assert len(server.requests("POST", "/v1/models")) == 2
    assert len(keys) == 1


def test_upload_asks_what_is_missing_after_a_lost_part(
    server: CrookedServer, client: Client, model: Path
) -> None:
    server.trouble("POST", "/complete", 409, body={"code": "parts_missing", "detail": "Part 2 is missing."})
    client.upload_model(model)
    assert len(server.requests("GET", "/v1/uploads/upl_1$")) == 2
    assert server.uploads["upl_1"]["status"] == "completed"


def test_part_that_arrived_damaged_is_sent_again(server: CrookedServer, client: Client, model: Path) -> None:
    server.trouble(
        "PUT", "/parts/4", 400, body={"code": "digest_mismatch", "detail": "The part did not arrive whole."}
    )
    client.upload_model(model)
    assert received(server) == whole(model)
    assert 12 < len(server.requests("PUT", "/parts/")) <= 24


def test_later_process_continues_an_interrupted_upload(
    server: CrookedServer, model: Path, tmp_path: Path
) -> None:
    server.refuse_parts(after=5)
    with (
        Client(server.url, attempts=QUICK, state_folder=tmp_path / "state") as first,
        pytest.raises(errors.ServiceFailure),
    ):
        first.upload_model(model)
    sent = len(server.parts)
    assert 0 < sent < 12
    server.troubles.clear()
    server.log.clear()
    with Client(server.url, attempts=QUICK, state_folder=tmp_path / "state") as second:
        second.upload_model(model)
    assert received(server) == whole(model)
    assert len(server.uploads) == 1
    assert len(server.requests("PUT", "/parts/")) == 12 - sent
    assert not list((tmp_path / "state" / "uploads").iterdir())


def test_killed_process_leaves_an_upload_that_continues(
    server: CrookedServer, model: Path, tmp_path: Path
) -> None:
    server.refuse_parts(after=5, kind="silence")
    script = "import sys; from secateur import Client; Client(sys.argv[1]).upload_model(sys.argv[2])"
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", script, server.url, str(model)], env=environment)
    while len(server.requests("PUT", "/parts/")) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.troubles.clear()
    with Client(server.url, attempts=QUICK, state_folder=tmp_path / "secateur") as client:
        client.upload_model(model)
    assert received(server) == whole(model)
    assert len(server.uploads) == 1


def test_upload_that_has_expired_is_begun_anew(server: CrookedServer, model: Path, tmp_path: Path) -> None:
    server.refuse_parts(after=5)
    with Client(server.url, attempts=QUICK, state_folder=tmp_path / "state") as client:
        with pytest.raises(errors.ServiceFailure):
            client.upload_model(model)
        server.troubles.clear()
        server.uploads["upl_1"]["status"] = "expired"
        client.upload_model(model)
    assert received(server, "upl_2") == whole(model)


def test_changed_file_is_another_upload(server: CrookedServer, client: Client, model: Path) -> None:
    server.refuse_parts(after=5)
    with pytest.raises(errors.ServiceFailure):
        client.upload_model(model)
    server.troubles.clear()
    (model / "model.safetensors").write_bytes(os.urandom(10_500))
    client.upload_model(model)
    assert received(server, "upl_2") == whole(model)


def test_refused_upload_is_told_with_every_fault(server: CrookedServer, client: Client, model: Path) -> None:
    document = {
        "code": "specification_invalid",
        "detail": "The upload cannot be opened.",
        "errors": [{"pointer": "/files/0/path", "message": "is not allowed"}],
    }
    server.trouble("POST", "/v1/uploads$", 422, body=document)
    with pytest.raises(errors.InvalidRequest) as caught:
        client.upload_model(model)
    assert str(caught.value).splitlines() == [
        "The upload cannot be opened. (422 specification_invalid)",
        "  - /files/0/path: is not allowed",
    ]
    assert len(server.log) == 1


def test_pickles_are_refused_before_anything_is_sent(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(errors.InputInvalid, match="secateur convert"):
        client.upload_model(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(errors.InputInvalid, match=r"no \*\.safetensors"):
        client.upload_model(tmp_path)
    with pytest.raises(errors.InputInvalid, match="no folder"):
        client.upload_model(tmp_path / "nothing")
    with pytest.raises(errors.InputInvalid, match="no file"):
        client.upload_dataset(tmp_path / "nothing.jsonl")
    assert server.log == []


def test_download_resumes_in_the_middle_of_a_file(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    server.files = {"config.json": b"{}", "secateur/manifest.json": os.urandom(400_000)}
    server.trouble("GET", "manifest.json", "cut")
    server.trouble("GET", "manifest.json", "cut")
    server.trouble("GET", "manifest.json", 503)
    seen: list[int] = []
    folder = client.download("art_1", tmp_path / "out", lambda done, total: seen.append(done))
    assert (folder / "secateur" / "manifest.json").read_bytes() == server.files["secateur/manifest.json"]
    ranges = [headers.get("Range") for headers in server.requests("GET", "manifest.json")]
    assert ranges[0] is None
    assert ranges[1:] == ["bytes=200000-", "bytes=300000-", "bytes=300000-"]
    assert seen[-1] == 400_002
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "config.json",
        "manifest.json",
    ]


def test_second_download_fetches_nothing_that_is_there(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    server.files = {"a.bin": os.urandom(5000), "b.bin": os.urandom(5000)}
    client.download("art_1", tmp_path)
    (tmp_path / "b.bin").write_bytes(b"something else")
    server.log.clear()
    client.download("art_1", tmp_path)
    assert (tmp_path / "b.bin").read_bytes() == server.files["b.bin"]
    assert not server.requests("GET", "a.bin")


def test_wrong_bytes_are_fetched_again_once_and_never_kept(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    server.files = {"a.bin": os.urandom(5000)}
    server.trouble("GET", "a.bin", "garble")
    client.download("art_1", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == server.files["a.bin"]
    (tmp_path / "a.bin").unlink()
    server.trouble("GET", "a.bin", "garble")
    server.trouble("GET", "a.bin", "garble")
    with pytest.raises(errors.TransferCorrupted, match="sha256"):
        client.download("art_1", tmp_path)
    assert list(tmp_path.glob("*.bin")) == []


def test_partial_file_of_another_process_is_continued(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    server.files = {"a.bin": os.urandom(5000)}
    for _ in range(QUICK.count + 1):
        server.trouble("GET", "a.bin", "cut" if len(server.troubles) == 0 else "drop")
    with pytest.raises(errors.ServiceUnreachable):
        client.download("art_1", tmp_path)
    server.troubles.clear()
    server.log.clear()
    client.download("art_1", tmp_path)
    assert [headers.get("Range") for headers in server.requests("GET", "a.bin")] == ["bytes=2500-"]
    assert (tmp_path / "a.bin").read_bytes() == server.files["a.bin"]


def test_paths_that_leave_the_folder_are_refused(
    server: CrookedServer, client: Client, tmp_path: Path
) -> None:
    for path in ("../evil", "/etc/evil", "a/../../evil", "a\\evil", "C:evil"):
        server.files = {path: b"x"}
        with pytest.raises(errors.AnswerNotUnderstood, match="unusable path"):
            client.download("art_1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
