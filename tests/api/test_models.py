"""Bringing, listing and deleting models."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import httpx2
import pytest

from tests import tiny_models
from tests.api.conftest import Submit, create_model
from tests.api.gateway import Gateway, form_files, send_upload


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestForm:
    def test_model_is_admitted_and_described(self, client: httpx2.Client, llama: Path) -> None:
        answer = client.post("/v1/models", data={"name": "tiny"}, files=form_files(llama))
        assert answer.status_code == 201, answer.text
        model = answer.json()
        assert answer.headers["location"] == f"/v1/models/{model['id']}"
        assert (model["name"], model["status"]) == ("tiny", "ready")
        assert (model["format"], model["architecture"]) == ("transformers", "LlamaForCausalLM")
        assert (model["family"], model["task"], model["dtype"]) == ("llama", "text-generation", "float32")
        assert model["parameters"] > 10_000
        assert model["inspection"]["layers"] == 2
        files = {file["path"]: file for file in model["files"]}
        weights = (llama / "model.safetensors").read_bytes()
        assert files["model.safetensors"]["sha256"] == hashlib.sha256(weights).hexdigest()
        assert set(files) == set(contents(llama))
        assert client.get(f"/v1/models/{model['id']}").json() == model

    def test_classifier_in_shards(self, client: httpx2.Client, tmp_path: Path) -> None:
        bert = tiny_models.tiny_bert(tmp_path / "bert", labels=["neg", "pos"])
        assert client.get(f"/v1/models/{create_model(client, bert)}").json()["task"] == "text-classification"
        sharded = tiny_models.tiny_llama(tmp_path / "sharded", shards=3, dtype="bfloat16")
        model = client.get(f"/v1/models/{create_model(client, sharded)}").json()
        assert model["dtype"] == "bfloat16"
        assert sum(file["path"].endswith(".safetensors") for file in model["files"]) == 3

    def test_config_is_stored_rewritten(
        self, client: httpx2.Client, gateway: Gateway, tmp_path: Path
    ) -> None:
        folder = tiny_models.tiny_llama(tmp_path / "model", config={"harmless_note": "dropped"})
        model = client.get(f"/v1/models/{create_model(client, folder)}").json()
        sha256 = next(file["sha256"] for file in model["files"] if file["path"] == "config.json")
        stored = json.loads(b"".join(gateway.blobs.read(sha256)))
        assert "harmless_note" not in stored
        assert stored["hidden_size"] == 32

    def test_field_order_does_not_matter(self, client: httpx2.Client, llama: Path) -> None:
        body, boundary = b"", "xyz"
        for name, content in contents(llama).items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
            body += head.encode() + content + b"\r\n"
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="name"\r\n\r\nlate\r\n'.encode()
        body += f"--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        # One byte at a time is as good as all at once.
        pieces = (body[start : start + 4093] for start in range(0, len(body), 4093))
        answer = client.post("/v1/models", content=pieces, headers=kind)
        assert answer.json()["name"] == "late", answer.text


BROKEN_FORMS = {
    "no name": ({}, [("files", ("config.json", b"{}"))], "name"),
    "no files": ({"name": "x"}, [], "files"),
    "unknown field": ({"name": "x", "nmae": "y"}, [("files", ("config.json", b"{}"))], "'nmae'"),
    "file in the wrong field": ({"name": "x"}, [("file", ("config.json", b"{}"))], "'files'"),
    "same name twice": ({"name": "x"}, [("files", ("a.json", b"{}")), ("files", ("A.json", b"{}"))], "twice"),
}
BAD_NAMES = [
    "../config.json",
    "/etc/passwd",
    "a//b",
    "a/./b",
    "a\\b",
    "c:config.json",
    "nul",
    "a/COM1.txt",
    "x" * 300,
    "tail.",
    " a",
]


class TestBadForms:
    @pytest.mark.parametrize("case", BROKEN_FORMS, ids=lambda case: case.replace(" ", "-"))
    def test_refused(self, client: httpx2.Client, case: str) -> None:
        data, files, says = BROKEN_FORMS[case]
        if not files:
            answer = client.post("/v1/models", files=[("name", (None, b"x"))])
        else:
            answer = client.post("/v1/models", data=data, files=files)
        assert (answer.status_code, answer.json()["code"]) == (400, "form_invalid"), answer.text
        assert says in answer.json()["detail"]

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_file_name(self, client: httpx2.Client, name: str) -> None:
        answer = client.post("/v1/models", data={"name": "x"}, files=[("files", (name, b"{}"))])
        assert (answer.status_code, answer.json()["code"]) == (422, "name_invalid"), answer.text
        assert answer.json()["errors"][0]["pointer"] == "/files"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"nonsense",
            b"--b\r\n",
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\ncut',
            b"--b\r\nNo-Disposition: x\r\n\r\nx\r\n--b--\r\n",
            b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n--b--\r\n",
            b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n",
        ],
        ids=["empty", "nonsense", "cut-1", "cut-2", "no-disposition", "many-headers", "long-header"],
    )
    def test_malformed(self, client: httpx2.Client, content: bytes) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/v1/models", content=content, headers=kind)
        assert (answer.status_code, answer.json()["code"]) == (400, "form_invalid")

    def test_without_boundary(self, client: httpx2.Client) -> None:
        answer = client.post("/v1/models", content=b"x", headers={"Content-Type": "multipart/form-data"})
        assert (answer.status_code, answer.json()["code"]) == (400, "form_invalid")

    def test_field_too_long(self, client: httpx2.Client) -> None:
        answer = client.post("/v1/models", files=[("name", (None, b"x" * 70_000))])
        assert answer.json()["code"] == "form_invalid"


class TestAdmission:
    def test_pickle_is_refused_by_content(self, client: httpx2.Client, llama: Path) -> None:
        files = [*form_files(llama), ("files", ("pytorch_model.bin", b"\x80\x02}q\x00."))]
        answer = client.post("/v1/models", data={"name": "bad"}, files=files)
        assert (answer.status_code, answer.json()["code"]) == (422, "pickle_refused")
        assert "convert" in answer.json()["detail"]

    def test_truncated_weights(self, client: httpx2.Client, llama: Path) -> None:
        files = contents(llama)
        files["model.safetensors"] = files["model.safetensors"][:-10]
        sent = [("files", item) for item in files.items()]
        answer = client.post("/v1/models", data={"name": "bad"}, files=sent)
        assert (answer.status_code, answer.json()["code"]) == (422, "safetensors_invalid")

    def test_code_in_the_config(self, client: httpx2.Client, tmp_path: Path) -> None:
        folder = tiny_models.tiny_llama(tmp_path / "m", config={"auto_map": {"AutoModel": "evil.Model"}})
        answer = client.post("/v1/models", data={"name": "bad"}, files=form_files(folder))
        assert (answer.status_code, answer.json()["code"]) == (422, "config_invalid")
        assert "auto_map" in answer.json()["detail"]

    def test_refused_model_leaves_no_row(self, client: httpx2.Client) -> None:
        client.post("/v1/models", data={"name": "bad"}, files=[("files", ("config.json", b"{}"))])
        assert client.get("/v1/models").json()["data"] == []


class TestFromUpload:
    def test_upload_in_parts(self, client: httpx2.Client, llama: Path) -> None:
        upload = send_upload(client, contents(llama), part_bytes=10_000, order=-1)
        body = {"name": "parts", "upload": upload, "metadata": {"team": "search"}}
        answer = client.post("/v1/models", json=body)
        assert answer.status_code == 201, answer.text
        assert answer.json()["metadata"] == {"team": "search"}
        twin = client.get(f"/v1/models/{create_model(client, llama)}").json()
        assert answer.json()["files"] == twin["files"]
        assert answer.json()["inspection"] == twin["inspection"]

    def test_one_upload_can_become_several_models(self, client: httpx2.Client, llama: Path) -> None:
        upload = send_upload(client, contents(llama))
        made = {
            client.post("/v1/models", json={"name": "m", "upload": upload}).json()["id"] for _ in range(2)
        }
        assert len(made) == 2

    def test_upload_that_is_not_complete(self, client: httpx2.Client) -> None:
        upload = client.post("/v1/uploads", json={"files": [{"path": "config.json", "bytes": 3}]}).json()[
            "id"
        ]
        answer = client.post("/v1/models", json={"name": "m", "upload": upload})
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_incomplete")
        client.delete(f"/v1/uploads/{upload}")
        answer = client.post("/v1/models", json={"name": "m", "upload": upload})
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_closed")


class TestListAndDelete:
    def test_pages(self, client: httpx2.Client, llama: Path) -> None:
        made = [create_model(client, llama, f"model {number}") for number in range(5)]
        first = client.get("/v1/models?limit=2").json()
        assert [model["id"] for model in first["data"]] == [made[4], made[3]]
        assert (first["has_more"], first["next"]) == (True, made[3])
        assert client.delete(f"/v1/models/{made[3]}").status_code == 204
        second = client.get(f"/v1/models?limit=100&after={first['next']}").json()
        assert [model["id"] for model in second["data"]] == made[2::-1]
        assert (second["has_more"], second["next"]) == (False, None)

    def test_deleted_model_is_gone(self, client: httpx2.Client, model: str) -> None:
        assert client.delete(f"/v1/models/{model}").status_code == 204
        assert client.get(f"/v1/models/{model}").status_code == 404
        assert client.delete(f"/v1/models/{model}").status_code == 404

    def test_model_of_an_active_job_stays(
        self, client: httpx2.Client, gateway: Gateway, model: str, submit: Submit
    ) -> None:
        job = submit()
        answer = client.delete(f"/v1/models/{model}")
        assert (answer.status_code, answer.json()["code"]) == (409, "model_in_use")
        assert job in answer.json()["detail"]
        gateway.succeed(gateway.claim(job), {"model.safetensors": b"x"})
        assert client.delete(f"/v1/models/{model}").status_code == 204
        assert client.get(f"/v1/jobs/{job}").status_code == 200


def test_broken_connection_leaves_nothing_behind(client: httpx2.Client, gateway: Gateway) -> None:
    def body() -> object:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="model.safetensors"\r\n\r\n'
        yield os.urandom(3 << 20)
        raise ConnectionAbortedError

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    with pytest.raises(ConnectionAbortedError):
        client.post("/v1/models", content=body(), headers=kind)
    staging = Path(gateway.settings.blob_url.removeprefix("file://")) / "staging"
    wait_until_empty(staging)
    assert client.get("/v1/models").json()["data"] == []


def wait_until_empty(folder: Path) -> None:
    import time

    for _ in range(100):
        if not list(folder.iterdir()):
            return
        time.sleep(0.05)
    raise AssertionError(f"left behind: {list(folder.iterdir())}")
