"""Bringing, listing and deleting datasets."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.api.conftest import TEXT, Submit, create_dataset
from tests.api.gateway import send_upload
from tests.pictures import NAMES, folders, pictures, write_npz, write_parquet, write_tar, write_zip


class TestCreate:
    def test_form(self, client: httpx2.Client) -> None:
        answer = client.post("/v1/datasets", data={"name": "text"}, files=[("files", ("text.jsonl", TEXT))])
        assert answer.status_code == 201, answer.text
        dataset = answer.json()
        assert (dataset["kind"], dataset["format"], dataset["rows"]) == ("text", "jsonl", 40)
        assert dataset["bytes"] == len(TEXT)
        assert client.get(answer.headers["location"]).json() == dataset

    def test_labelled_and_plain(self, client: httpx2.Client) -> None:
        rows = b'{"text": "good", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'
        labelled = client.get(f"/v1/datasets/{create_dataset(client, rows)}").json()
        assert (labelled["kind"], labelled["facts"]["labels"]) == ("labelled", ["neg", "pos"])
        made = create_dataset(client, b"one\n\ntwo\n", "a.txt")
        plain = client.get(f"/v1/datasets/{made}").json()
        assert (plain["kind"], plain["format"], plain["rows"]) == ("text", "txt", 2)

    def test_images(self, client: httpx2.Client, tmp_path: Path) -> None:
        images, labels = pictures(6)
        made = {
            "a.npz": (write_npz(tmp_path / "a.npz", images, labels, packed=True), [0, 1, 2]),
            "a.zip": (write_zip(tmp_path / "a.zip", folders(images, labels)), list(NAMES)),
            "a.tar": (write_tar(tmp_path / "a.tar", folders(images, labels)), list(NAMES)),
            "a.parquet": (write_parquet(tmp_path / "a.parquet", images, labels, names=NAMES), list(NAMES)),
        }
        for name, (path, expected) in made.items():
            dataset = client.get(f"/v1/datasets/{create_dataset(client, path.read_bytes(), name)}").json()
            assert (dataset["kind"], dataset["rows"]) == ("image", 6)
            assert (dataset["format"], dataset["facts"]["labels"]) == (name.partition(".")[2], expected)

    def test_from_upload(self, client: httpx2.Client) -> None:
        upload = send_upload(client, {"text.jsonl": TEXT}, part_bytes=100)
        answer = client.post("/v1/datasets", json={"name": "text", "upload": upload})
        assert (answer.status_code, answer.json()["rows"]) == (201, 40)

    @pytest.mark.parametrize(
        ("name", "content", "code", "says"),
        [
            ("a.jsonl", b"", "dataset_empty", ""),
            ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "dataset_invalid", "2"),
            ("a.jsonl", b'{"text": "a"}\nnonsense\n', "dataset_invalid", "2"),
            ("a.csv", b"text\na\n", "dataset_format_unknown", ".jsonl"),
            ("a.zip", b"PK" + bytes(50), "dataset_invalid", "no zip archive"),
            ("a.parquet", b"PAR1", "dataset_invalid", "no parquet file"),
        ],
    )
    def test_refused(self, client: httpx2.Client, name: str, content: bytes, code: str, says: str) -> None:
        answer = client.post("/v1/datasets", data={"name": "bad"}, files=[("files", (name, content))])
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert says in answer.json()["detail"]
        assert client.get("/v1/datasets").json()["data"] == []

    def test_exactly_one_file(self, client: httpx2.Client) -> None:
        files = [("files", ("a.txt", b"x")), ("files", ("b.txt", b"y"))]
        answer = client.post("/v1/datasets", data={"name": "two"}, files=files)
        assert (answer.status_code, answer.json()["code"]) == (422, "dataset_rejected")


class TestListAndDelete:
    def test_pages(self, client: httpx2.Client) -> None:
        made = [create_dataset(client, b"text %d" % number, "a.txt") for number in range(3)]
        page = client.get("/v1/datasets?limit=2").json()
        assert [row["id"] for row in page["data"]] == made[:0:-1]
        assert client.get(f"/v1/datasets?after={page['next']}").json()["data"][0]["id"] == made[0]

    @pytest.mark.parametrize("part", ["calibration", "evaluation", "calibration domain", "evaluation domain"])
    def test_dataset_of_an_active_job_stays(
        self, client: httpx2.Client, dataset: str, submit: Submit, part: str
    ) -> None:
        name, _, domain = part.partition(" ")
        if domain:
            general = {"dataset": create_dataset(client)}
            named = {"calibration": general, name: general | {"domain": {"dataset": dataset}}}
            job = submit(recipe="d-pruner" if name == "calibration" else "wanda", **named)
        else:
            job = submit(**{part: {"dataset": dataset}})
        answer = client.delete(f"/v1/datasets/{dataset}")
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
        assert client.post(f"/v1/jobs/{job}/cancel").status_code == 200
        assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
        assert client.get(f"/v1/datasets/{dataset}").status_code == 404
