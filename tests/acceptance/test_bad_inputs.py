"""Whatever is wrong gets an answer that says what and where, and the service keeps answering."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from secateur import Client, errors
from tests.acceptance.service import Running
from tests.tiny_models import tiny_llama, write_checkpoint

Files = dict[str, bytes]


def base(folder: Path) -> Files:
    """A sound model as files by name."""
    return {path.name: path.read_bytes() for path in tiny_llama(folder).iterdir()}


def pickled(files: Files) -> None:
    del files["model.safetensors"]
    files["pytorch_model.bin"] = pickle.dumps({"a": 1})


def pickle_with_another_name(files: Files) -> None:
    files["model.safetensors"] = pickle.dumps({"a": 1}) * 100


def truncated(files: Files) -> None:
    files["model.safetensors"] = files["model.safetensors"][:-100]


def cut_in_the_header(files: Files) -> None:
    files["model.safetensors"] = files["model.safetensors"][:40]


def header(files: Files) -> tuple[dict[str, Any], bytes]:
    data = files["model.safetensors"]
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(files: Files, head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    files["model.safetensors"] = len(text).to_bytes(8, "little") + text + body


def wrong_dtype(files: Files) -> None:
    head, body = header(files)
    head["model.norm.weight"]["dtype"] = "F64"
    with_header(files, head, body)


def missing_weight(files: Files) -> None:
    head, body = header(files)
    head["model.layers.1.mlp.other.weight"] = head.pop("model.layers.1.mlp.up_proj.weight")
    with_header(files, head, body)


def wrong_shape(files: Files) -> None:
    head, body = header(files)
    head["model.layers.0.mlp.up_proj.weight"]["shape"].reverse()
    with_header(files, head, body)


def configured(**changes: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        config = json.loads(files["config.json"])
        files["config.json"] = json.dumps({**config, **changes}).encode()

    return change


def no_config(files: Files) -> None:
    del files["config.json"]


def broken_config(files: Files) -> None:
    files["config.json"] = b'{"architectures": ['


MODELS: dict[str, tuple[Callable[[Files], None], str]] = {
    "a pickle": (pickled, "secateur convert"),
    "a pickle with another name": (pickle_with_another_name, "model.safetensors"),
    "truncated weights": (truncated, "model.safetensors"),
    "weights cut in the header": (cut_in_the_header, "model.safetensors"),
    "a type that is not allowed": (wrong_dtype, "model.norm.weight"),
    "a weight that is missing": (missing_weight, "model.layers.1.mlp.up_proj.weight"),
    "a weight of the wrong shape": (wrong_shape, "model.layers.0.mlp.up_proj.weight"),
    "an unknown architecture": (
        configured(architectures=["SomethingElse"], model_type="other"),
        "SomethingElse",
    ),
    "code references": (configured(auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "no config": (no_config, "config.json"),
    "a broken config": (broken_config, "config.json"),
}


@pytest.fixture
def http(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{service.url}/v1", timeout=60) as connected:
        yield connected


def refused(answer: httpx2.Response) -> str:
    """A 4xx problem document; returns all its words."""
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= problem.keys()
    assert problem["status"] == answer.status_code
    assert str(Path.home()) not in answer.text
    return " ".join(
        [problem["detail"], *(f"{f['pointer']} {f['message']}" for f in problem.get("errors", []))]
    )


def still_up(http: httpx2.Client) -> None:
    assert http.get("/recipes").status_code == 200


@pytest.mark.parametrize("case", MODELS)
def test_models(http: httpx2.Client, tmp_path: Path, case: str) -> None:
    damage, words = MODELS[case]
    files = base(tmp_path / "model")
    damage(files)
    answer = http.post("/models", data={"name": case}, files=[("files", item) for item in files.items()])
    assert words in refused(answer)
    still_up(http)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "empty"),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2"),
        ("other.jsonl", b'{"text": "fine"}\n{"words": "no text"}\n', "line 2"),
        ("notes.csv", b"a,b\n1,2\n", "jsonl"),
        ("bytes.txt", b"\xff\xfe\xfa" * 100, "UTF-8"),
    ],
)
def test_datasets(http: httpx2.Client, name: str, content: bytes, words: str) -> None:
    answer = http.post("/datasets", data={"name": name}, files=[("files", (name, content))])
    assert words.lower() in refused(answer).lower()
    still_up(http)


@pytest.fixture(scope="module")
def stored(
    service: Running, llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    with Client(service.url, state_folder=tmp_path_factory.mktemp("state")) as client:
        return {"model": client.upload_model(llama).id, "dataset": client.upload_dataset(text).id}


SPECIFICATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a sparsity that n:m cannot give": (
        {"target": {"sparsity": 0.999}, "structure": {"granularity": "2:4"}},
        "/target/sparsity",
    ),
    "a sparsity of one": ({"target": {"sparsity": 1.0}}, "/target/sparsity"),
    "two targets": ({"target": {"sparsity": 0.5, "macs": 0.5}}, "/target"),
    "more layers than there are": ({"recipe": "layer-drop", "target": {"layers": 12}}, "/target/layers"),
    "every layer": ({"recipe": "layer-drop", "target": {"layers": 3}}, "/target/layers"),
    "an unknown key": ({"sparsity": 0.5}, "/sparsity"),
    "a misspelt key": ({"calibratoin": {}}, "calibration"),
    "an unknown key inside": ({"calibration": {"datset": "x"}}, "/calibration/datset"),
    "an unknown recipe": ({"recipe": "wandda"}, "wanda"),
    "an unknown option": ({"options": {"alocation": "global"}}, "/options/alocation"),
    "an unknown allocation": ({"options": {"allocation": "owls"}}, "/options/allocation"),
    "a pattern that fits nothing": ({"structure": {"ignore": ["nothing.*"]}}, "/structure/ignore/0"),
    "a model that is not there": ({"model": "mdl_00000000000000000000000000"}, "/model"),
    "a dataset that is not there": (
        {"calibration": {"dataset": "dst_00000000000000000000000000"}},
        "/calibration",
    ),
    "no calibration for wanda": ({"calibration": None}, "/calibration"),
    "a target that does not exist yet": ({"target": {"latency": 0.5}}, "/target"),
}


@pytest.mark.parametrize("case", SPECIFICATIONS)
def test_specifications(http: httpx2.Client, stored: dict[str, str], case: str) -> None:
    changes, words = SPECIFICATIONS[case]
    specification = {
        "model": stored["model"],
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": stored["dataset"]},
        **changes,
    }
    assert words in refused(http.post("/jobs", json=specification))
    still_up(http)


def test_numbers_that_are_not_finite_fail_the_job(
    client: Client, service: Running, text: Path, tmp_path: Path
) -> None:
    """What only reading the weights can show: the job fails and names the weight."""
    folder = tiny_llama(tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    place = json.loads(data[8:end])["model.layers.1.mlp.down_proj.weight"]["data_offsets"][0]
    broken = bytearray(data)
    broken[end + place : end + place + 4] = np.float32("nan").tobytes()
    (folder / "model.safetensors").write_bytes(broken)
    model, dataset = client.upload_model(folder), client.upload_dataset(text)
    job = client.submit(
        {
            "model": model.id,
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": dataset.id, "samples": 4, "sequence_length": 16},
        }
    )
    ended = client.wait(job.id, timeout=200)
    assert ended.state == "failed"
    with pytest.raises(errors.JobFailed, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        ended.raise_for_state()
    assert ended.error
    assert str(service.home) not in ended.error.message
    assert client.ready()


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("POST", "/jobs", {"content": b"{not json", "headers": {"Content-Type": "application/json"}}),
        ("POST", "/jobs", {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
        ("POST", "/jobs", {"json": {"x": "y" * 600_000}}),
        ("POST", "/jobs", {"json": []}),
        ("GET", "/jobs/job_nothing", {}),
        ("GET", "/nothing", {}),
        ("DELETE", "/jobs", {}),
        ("GET", "/jobs", {"params": {"limit": "many"}}),
        ("GET", "/models", {"params": {"after": "../../etc/passwd"}}),
        ("POST", "/uploads", {"json": {"files": [{"path": "../x", "bytes": 1}]}}),
        ("POST", "/uploads", {"json": {"files": [{"path": "x", "bytes": -1}]}}),
    ],
)
def test_requests_that_make_no_sense(
    http: httpx2.Client, method: str, path: str, arguments: dict[str, Any]
) -> None:
    refused(http.request(method, path, **arguments))
    still_up(http)


def test_client_tells_a_rejected_model_in_words(client: Client, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", {"architectures": ["Odd"]}, {"a.weight": np.ones((2, 2), np.float32)})
    with pytest.raises((errors.InvalidRequest, errors.ModelRejected), match="Odd"):
        client.upload_model(tmp_path / "odd")
