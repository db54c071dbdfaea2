"""Artifacts and reports: whole, in ranges, as an archive; never the wrong bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import tarfile

import httpx2
import pytest

from service.artifacts.archive import Archive, Member
from service.downloads import disposition, media_type_of, requested_range
from service.errors import RangeInvalid
from service.jobs.report import wants_page
from tests.api.conftest import Submit
from tests.api.gateway import Gateway

WEIGHTS = random.Random(0).randbytes(3 * 1024 * 1024 + 17)
LONG = "/".join(["folder-with-a-long-name"] * 12) + "/x.txt"
FILES = {
    "model.safetensors": WEIGHTS,
    "config.json": b"{}",
    "empty.txt": b"",
    "secateur/manifest.json": b'{"version": 1}',
    "page.html": b"<script>alert(1)</script>",
    "Ünïcode name.txt": b"x" * 512,
    LONG: b"long",
}


@pytest.fixture
def artifact(gateway: Gateway, submit: Submit) -> str:
    return gateway.succeed(gateway.claim(submit()), FILES)


class TestMetadata:
    def test_files_with_their_hashes(self, client: httpx2.Client, artifact: str) -> None:
        read = client.get(f"/v1/artifacts/{artifact}").json()
        assert {file["path"]: (file["bytes"], file["sha256"]) for file in read["files"]} == {
            path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in FILES.items()
        }
        assert read["bytes"] == sum(map(len, FILES.values()))
        assert (read["format"], read["manifest"]) == ("safetensors", {"version": 1})
        job = client.get(f"/v1/jobs/{read['job']}").json()
        assert job["result"]["artifact"] == artifact

    def test_list_and_delete(self, client: httpx2.Client, artifact: str) -> None:
        listed = client.get("/v1/artifacts").json()["data"]
        assert [row["id"] for row in listed] == [artifact]
        assert client.delete(f"/v1/artifacts/{artifact}").status_code == 204
        for path in ("", "/files/config.json", "/archive"):
            assert client.get(f"/v1/artifacts/{artifact}{path}").json()["code"] == "artifact_not_found"
        assert client.get(f"/v1/jobs/{listed[0]['job']}/report").status_code == 200


class TestFile:
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path[:24])
    def test_whole(self, client: httpx2.Client, artifact: str, path: str) -> None:
        answer = client.get(f"/v1/artifacts/{artifact}/files/{path}")
        digest = hashlib.sha256(FILES[path]).digest()
        assert (answer.status_code, answer.content) == (200, FILES[path])
        assert answer.headers["etag"] == f'"sha256-{digest.hex()}"'
        assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
        assert answer.headers["content-length"] == str(len(FILES[path]))
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert "html" not in answer.headers["content-type"]

    def test_head(self, client: httpx2.Client, artifact: str) -> None:
        path = f"/v1/artifacts/{artifact}/files/model.safetensors"
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        different = {"x-request-id", "date"}
        assert {k: v for k, v in head.headers.items() if k not in different} == {
            k: v for k, v in get.headers.items() if k not in different
        }
        part = client.head(path, headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.headers["content-length"]) == (206, "10")

    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=0-99", 0, 100),
            ("bytes=1048570-1048590", 1048570, 1048591),
            ("bytes=3000000-", 3000000, None),
            ("bytes=-5", -5, None),
            ("bytes=-99999999", 0, None),
            ("bytes=5-99999999", 5, None),
            ("bytes = 7 - 9", 7, 10),
        ],
    )
    def test_range(
        self, client: httpx2.Client, artifact: str, asked: str, start: int, end: int | None
    ) -> None:
        answer = client.get(f"/v1/artifacts/{artifact}/files/model.safetensors", headers={"Range": asked})
        expected = WEIGHTS[start:end]
        assert (answer.status_code, answer.content) == (206, expected)
        first = start if start >= 0 else len(WEIGHTS) + start
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(WEIGHTS)}"
        assert answer.headers["repr-digest"] == client.head(answer.request.url.path).headers["repr-digest"]

    @pytest.mark.parametrize(
        "asked",
        ["bytes=0-1,4-5", "items=0-1", "bytes=", "bytes=-", "bytes=a-b", "bytes=9-3", "bytes=1", "0-1"],
    )
    def test_range_that_is_ignored(self, client: httpx2.Client, artifact: str, asked: str) -> None:
        answer = client.get(f"/v1/artifacts/{artifact}/files/config.json", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, b"{}")

    @pytest.mark.parametrize("asked", ["bytes=2-", "bytes=2-9", "bytes=-0", "bytes=" + "9" * 40 + "-"])
    def test_range_outside(self, client: httpx2.Client, artifact: str, asked: str) -> None:
        answer = client.get(f"/v1/artifacts/{artifact}/files/config.json", headers={"Range": asked})
        assert (answer.status_code, answer.json()["code"]) == (416, "range_invalid")
        assert answer.headers["content-range"] == "bytes */2"

    def test_conditions(self, client: httpx2.Client, artifact: str) -> None:
        path = f"/v1/artifacts/{artifact}/files/config.json"
        etag = client.head(path).headers["etag"]
        for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            answer = client.get(path, headers={"If-None-Match": given})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        ranged = {"Range": "bytes=0-0"}
        assert client.get(path, headers={**ranged, "If-Range": etag}).status_code == 206
        for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2026 07:28:00 GMT"):
            assert client.get(path, headers={**ranged, "If-Range": other}).status_code == 200

    def test_resumed_download(self, client: httpx2.Client, artifact: str) -> None:
        path = f"/v1/artifacts/{artifact}/files/model.safetensors"
        got = b""
        while len(got) < len(WEIGHTS):
            with client.stream("GET", path, headers={"Range": f"bytes={len(got)}-"}) as answer:
                for piece in answer.iter_raw(300_000):
                    got += piece
                    break
        assert got == WEIGHTS

    @pytest.mark.parametrize("path", ["missing", "config.json/", "../config.json", "%00", "CONFIG.JSON", ""])
    def test_no_such_file(self, client: httpx2.Client, artifact: str, path: str) -> None:
        assert client.get(f"/v1/artifacts/{artifact}/files/{path}").status_code == 404

    def test_blob_that_is_gone(self, client: httpx2.Client, gateway: Gateway, artifact: str) -> None:
        gateway.blobs.delete(hashlib.sha256(b"long").hexdigest())
        answer = client.get(f"/v1/artifacts/{artifact}/files/{LONG}")
        assert (answer.status_code, answer.json()["code"]) == (500, "blob_missing")


class TestArchive:
    def test_is_a_tar_of_everything(self, client: httpx2.Client, artifact: str) -> None:
        answer = client.get(f"/v1/artifacts/{artifact}/archive")
        assert answer.headers["content-type"] == "application/x-tar"
        assert int(answer.headers["content-length"]) == len(answer.content)
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}
            assert [member.name for member in tar] == sorted(FILES)
            assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {
                (0, 0, "", 0o644)
            }
        assert found == FILES

    def test_same_bytes_every_time(self, client: httpx2.Client, artifact: str) -> None:
        path = f"/v1/artifacts/{artifact}/archive"
        first, second = client.get(path), client.get(path)
        assert first.content == second.content
        assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
        head = client.head(path)
        assert (head.content, head.headers["content-length"]) == (b"", first.headers["content-length"])

    def test_file_of_more_than_eight_gigabytes(self) -> None:
        member = Member("big.bin", "0" * 64, 9 << 30)
        archive = Archive([member])
        assert archive.size % tarfile.RECORDSIZE == 0
        header = next(archive.read(None))
        assert tarfile.TarFile(fileobj=io.BytesIO(header)).next().size == 9 << 30

    def test_no_files(self) -> None:
        archive = Archive([])
        assert b"".join(archive.read(None)) == b"\0" * archive.size


class TestReport:
    @pytest.fixture
    def job(self, client: httpx2.Client, artifact: str) -> str:
        return str(client.get(f"/v1/artifacts/{artifact}").json()["job"])

    def test_as_data(self, client: httpx2.Client, job: str) -> None:
        answer = client.get(f"/v1/jobs/{job}/report")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["schema"] == "secateur.report/1"
        assert answer.headers["vary"] == "Accept"

    def test_as_page(self, client: httpx2.Client, job: str) -> None:
        answer = client.get(f"/v1/jobs/{job}/report", headers={"Accept": "text/html,*/*;q=0.8"})
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<!doctype html>" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        etag = answer.headers["etag"]
        again = {"Accept": "text/html", "If-None-Match": etag}
        assert client.get(f"/v1/jobs/{job}/report", headers=again).status_code == 304

    def test_of_a_job_that_has_none(self, client: httpx2.Client, submit: Submit) -> None:
        answer = client.get(f"/v1/jobs/{submit()}/report")
        assert (answer.status_code, answer.json()["code"]) == (404, "report_not_found")
        assert "queued" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("accept", "page"),
        [
            ("", False),
            ("*/*", False),
            ("application/json", False),
            ("text/html", True),
            ("text/html;q=0.5, application/json;q=0.9", False),
            ("application/json;q=0.5, text/html", True),
            ("text/html;q=x", False),
            ("TEXT/HTML; q=1.0", True),
        ],
    )
    def test_choice(self, accept: str, page: bool) -> None:
        assert wants_page(accept) is page


class TestArithmetic:
    def test_every_range_of_a_small_file(self) -> None:
        content = bytes(range(10))
        for first in range(12):
            for last in range(first, 13):
                header = f"bytes={first}-{last}"
                if first >= len(content):
                    with pytest.raises(RangeInvalid):
                        requested_range(header, len(content))
                    continue
                start, length = requested_range(header, len(content)) or (0, 0)
                assert content[start : start + length] == content[first : last + 1]

    def test_empty_file_has_no_range(self) -> None:
        for header in ("bytes=0-", "bytes=-1", "bytes=0-0"):
            with pytest.raises(RangeInvalid):
                requested_range(header, 0)
        assert requested_range(None, 0) is None

    def test_strangers_pages_do_not_become_pages_of_ours(self) -> None:
        for name in ("a.html", "a.svg", "a.js", "a.xml", "a.xhtml", "a", "a.safetensors"):
            assert media_type_of(name) == "application/octet-stream"

    def test_names_in_headers(self) -> None:
        assert disposition('a"b\r\nX: y.txt') == (
            "attachment; filename=\"a_b__X__y.txt\"; filename*=UTF-8''a%22b%0D%0AX%3A%20y.txt"
        )
