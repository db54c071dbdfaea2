"""Uploads in numbered parts: any order, any number of times, never the wrong bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from service.settings import Settings
from service.uploads.service import part_size, parts_of
from tests.api.gateway import Gateway, content_digest, put_part, send_upload, serve

FILES = {"a.bin": bytes(range(256)) * 40, "empty.bin": b"", "deep/b.bin": b"b" * 1000}


def announced(files: dict[str, bytes], part_bytes: int = 1000) -> dict[str, object]:
    return {
        "files": [
            {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        ],
        "part_bytes": part_bytes,
    }


def open_upload(client: httpx2.Client, files: dict[str, bytes], part_bytes: int = 1000) -> dict[str, object]:
    answer = client.post("/v1/uploads", json=announced(files, part_bytes))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


class TestParts:
    def test_cover_every_byte_once(self) -> None:
        files = [{"path": path, "bytes": len(content)} for path, content in FILES.items()]
        for size in (1, 7, 999, 1000, 1001, 10**6):
            parts = list(parts_of(files, size))
            assert [part.number for part in parts] == list(range(1, len(parts) + 1))
            for path, content in FILES.items():
                own = [part for part in parts if part.path == path]
                assert b"".join(content[part.offset : part.offset + part.bytes] for part in own) == content
                assert all(0 < part.bytes <= size for part in own)

    def test_never_more_than_ten_thousand(self) -> None:
        assert part_size(10**12, 1) == 10**8
        assert part_size(100, 64) == 64
        assert part_size(0, 64) == 64

    def test_are_listed(self, client: httpx2.Client) -> None:
        upload = open_upload(client, FILES, 4096)
        assert (upload["status"], upload["part_bytes"], upload["files"]) == ("open", 4096, [])
        assert [(part["path"], part["offset"], part["bytes"]) for part in upload["parts"]] == [
            ("a.bin", 0, 4096), ("a.bin", 4096, 4096), ("a.bin", 8192, 2048), ("deep/b.bin", 0, 1000),
        ]  # fmt: skip


class TestSending:
    @pytest.mark.parametrize("order", [1, -1])
    def test_any_order(self, client: httpx2.Client, gateway: Gateway, order: int) -> None:
        upload = send_upload(client, FILES, part_bytes=900, order=order)
        read = client.get(f"/v1/uploads/{upload}").json()
        assert read["status"] == "completed"
        assert read["completed_at"] is not None
        for file in read["files"]:
            assert b"".join(gateway.blobs.read(file["sha256"])) == FILES[file["path"]]

    def test_repeated_part_does_no_harm(self, client: httpx2.Client) -> None:
        upload = open_upload(client, FILES)
        for part in [*upload["parts"], *upload["parts"][::-1]]:
            assert put_part(client, upload["id"], part, FILES).status_code == 200
        assert client.post(f"/v1/uploads/{upload['id']}/complete").status_code == 200

    def test_a_part_sent_again_replaces_the_first(self, client: httpx2.Client) -> None:
        upload = open_upload(client, {"a.bin": b"right"})
        part = upload["parts"][0]
        assert put_part(client, upload["id"], part, {"a.bin": b"wrong"}).status_code == 200
        answer = client.post(f"/v1/uploads/{upload['id']}/complete")
        assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
        assert answer.json()["errors"][0]["pointer"] == "/files/0/sha256"
        assert put_part(client, upload["id"], part, {"a.bin": b"right"}).status_code == 200
        assert client.post(f"/v1/uploads/{upload['id']}/complete").status_code == 200

    def test_same_part_from_eight_clients_at_once(self, client: httpx2.Client) -> None:
        upload = open_upload(client, FILES, 10_000)
        start = threading.Barrier(8)

        def send(number: int) -> int:
            start.wait()
            return max(put_part(client, upload["id"], part, FILES).status_code for part in upload["parts"])

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, range(8))) == {200}
            done = list(pool.map(lambda _: client.post(f"/v1/uploads/{upload['id']}/complete"), range(4)))
        assert {answer.status_code for answer in done} == {200}
        assert len({str(answer.json()["files"]) for answer in done}) == 1

    def test_progress_is_the_resume_point(self, client: httpx2.Client) -> None:
        upload = open_upload(client, FILES)
        sent = upload["parts"][1::2]
        for part in sent:
            put_part(client, upload["id"], part, FILES)
        read = client.get(f"/v1/uploads/{upload['id']}").json()
        assert [part["number"] for part in read["parts"] if part["received"]] == [
            part["number"] for part in sent
        ]
        assert read["expires_at"] > upload["expires_at"]
        answer = client.post(f"/v1/uploads/{upload['id']}/complete")
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_incomplete")
        assert {fault["pointer"] for fault in answer.json()["errors"]} == {
            f"/parts/{part['number']}" for part in upload["parts"][::2]
        }


class TestWrongParts:
    def put(
        self, client: httpx2.Client, content: bytes, headers: dict[str, str], number: int = 1
    ) -> httpx2.Response:
        upload = open_upload(client, {"a.bin": b"12345"})
        answer = client.put(f"/v1/uploads/{upload['id']}/parts/{number}", content=content, headers=headers)
        assert not any(part["received"] for part in client.get(f"/v1/uploads/{upload['id']}").json()["parts"])
        return answer

    @pytest.mark.parametrize(
        "digest",
        [
            None,
            "",
            "sha-256=:AAAA:",
            "md5=:AAAA:",
            "sha-256=abc",
            "sha-256=:%%%%:",
            "sha-256=:" + "A" * 45 + ":",
        ],
    )
    def test_no_usable_digest(self, client: httpx2.Client, digest: str | None) -> None:
        answer = self.put(client, b"12345", {} if digest is None else {"Content-Digest": digest})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")

    def test_other_digest(self, client: httpx2.Client) -> None:
        answer = self.put(client, b"12345", content_digest(b"54321"))
        assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")

    @pytest.mark.parametrize("content", [b"", b"1234", b"123456"])
    def test_other_length(self, client: httpx2.Client, content: bytes) -> None:
        answer = self.put(client, content, content_digest(content))
        assert (answer.status_code, answer.json()["code"]) == (422, "part_invalid")

    @pytest.mark.parametrize("content", [b"1234", b"123456", b"1" * 3_000_000])
    def test_other_length_unannounced(self, client: httpx2.Client, content: bytes) -> None:
        upload = open_upload(client, {"a.bin": b"12345"})
        path = f"/v1/uploads/{upload['id']}/parts/1"
        pieces = (content[start : start + 65536] for start in range(0, len(content), 65536))
        answer = client.put(path, content=pieces, headers=content_digest(content))
        assert (answer.status_code, answer.json()["code"]) == (422, "part_invalid")

    @pytest.mark.parametrize("number", [0, 2, -1, 10**30])
    def test_no_such_part(self, client: httpx2.Client, number: int) -> None:
        answer = self.put(client, b"12345", content_digest(b"12345"), number)
        assert (answer.status_code, answer.json()["code"]) == (422, "part_invalid")

    def test_several_digests(self, client: httpx2.Client) -> None:
        upload = open_upload(client, {"a.bin": b"12345"})
        digest = "md5=:AAAA:, " + content_digest(b"12345")["Content-Digest"]
        path = f"/v1/uploads/{upload['id']}/parts/1"
        assert client.put(path, content=b"12345", headers={"Content-Digest": digest}).status_code == 200


class TestOpening:
    @pytest.mark.parametrize(
        ("files", "code", "pointer"),
        [
            ([], "body_invalid", "/files"),
            ([{"path": "a", "bytes": -1}], "body_invalid", "/files/0/bytes"),
            ([{"path": "a", "bytes": 1, "sha256": "XY"}], "body_invalid", "/files/0/sha256"),
            ([{"path": "../a", "bytes": 1}], "name_invalid", "/files/0/path"),
            ([{"path": "a", "bytes": 1}, {"path": "A", "bytes": 1}], "name_invalid", "/files/1/path"),
            ([{"path": "a", "bytes": 1}] * 2001, "body_invalid", "/files"),
        ],
    )
    def test_refused(self, client: httpx2.Client, files: object, code: str, pointer: str) -> None:
        answer = client.post("/v1/uploads", json={"files": files})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert answer.json()["errors"][0]["pointer"] == pointer

    def test_larger_than_allowed(self, client: httpx2.Client, gateway: Gateway) -> None:
        files = [{"path": "a", "bytes": gateway.settings.max_upload_bytes}, {"path": "b", "bytes": 1}]
        answer = client.post("/v1/uploads", json={"files": files})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    def test_form_larger_than_allowed(self, special: Callable[..., Settings]) -> None:
        with serve(special(auth="off", max_upload_bytes=1000)) as gateway:
            files = [("files", ("a.txt", b"x" * 600)), ("files", ("b.txt", b"x" * 600))]
            answer = gateway.client().post("/v1/models", data={"name": "m"}, files=files)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    def test_empty_file_alone(self, client: httpx2.Client) -> None:
        upload = open_upload(client, {"empty": b""})
        assert upload["parts"] == []
        done = client.post(f"/v1/uploads/{upload['id']}/complete").json()
        assert [(file["path"], file["bytes"]) for file in done["files"]] == [("empty", 0)]


class TestClosing:
    def test_complete_again_is_the_same(self, client: httpx2.Client) -> None:
        upload = send_upload(client, FILES)
        first = client.post(f"/v1/uploads/{upload}/complete").json()
        assert client.post(f"/v1/uploads/{upload}/complete", json={}).json() == first

    def test_no_parts_after_the_end(self, client: httpx2.Client) -> None:
        upload = send_upload(client, {"a": b"12345"})
        path = f"/v1/uploads/{upload}/parts/1"
        answer = client.put(path, content=b"12345", headers=content_digest(b"12345"))
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_closed")

    def test_given_up(self, client: httpx2.Client) -> None:
        upload = open_upload(client, {"a": b"12345"})
        assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
        assert client.get(f"/v1/uploads/{upload['id']}").json()["status"] == "aborted"
        assert put_part(client, upload["id"], upload["parts"][0], {"a": b"12345"}).status_code == 409
        assert client.post(f"/v1/uploads/{upload['id']}/complete").json()["code"] == "upload_closed"

    def test_expired(self, special: Callable[..., Settings]) -> None:
        with serve(special(auth="off", upload_ttl=0.05, sweep_seconds=3600)) as gateway:
            client = gateway.client()
            upload = open_upload(client, {"a": b"12345"})
            threading.Event().wait(0.2)
            answer = put_part(client, upload["id"], upload["parts"][0], {"a": b"12345"})
            assert (answer.status_code, answer.json()["code"]) == (410, "upload_expired")
            assert client.post(f"/v1/uploads/{upload['id']}/complete").status_code == 410
            assert gateway.contract.breaches == []
