"""Whole ways through the service: a model goes in, a smaller one comes out and loads in transformers."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from secateur import Client
from tests.acceptance.service import Running, command, load
from tests.tiny_models import tiny_llama

SAMPLE = {"samples": 8, "sequence_length": 32}
EVALUATION = {"samples": 8, "sequence_length": 32, "measure": []}


def sites(loaded: dict[str, Any]) -> list[str]:
    """Names of the weights inside the blocks."""
    return [name for name in loaded["zeros"] if ".layers." in name or ".layer." in name]


def journey(client: Client, model: Path, data: Path, out: Path, **wish: Any) -> dict[str, Any]:
    """Upload, run, download; returns the report."""
    uploaded, text = client.upload_model(model), client.upload_dataset(data)
    calibration = {"dataset": text.id, **SAMPLE}
    job = client.submit({"model": uploaded.id, "calibration": calibration, "evaluation": EVALUATION, **wish})
    job = client.wait(job.id, timeout=240).raise_for_state()
    client.download(job.artifact, out)
    report: dict[str, Any] = client.report(job.id)
    return report


def test_plain_http_with_multipart(service: Running, llama: Path, text: Path, tmp_path: Path) -> None:
    """What a reader of the README does with curl: multipart, poll, report, ranges, archive."""
    with httpx2.Client(base_url=f"{service.url}/v1", timeout=60) as http:
        files = [("files", (path.name, path.read_bytes())) for path in sorted(llama.iterdir())]
        model = http.post("/models", data={"name": "mine"}, files=files)
        assert model.status_code == 201, model.text
        assert (model.json()["status"], model.json()["architecture"]) == ("ready", "LlamaForCausalLM")
        dataset = http.post(
            "/datasets", data={"name": "text"}, files=[("files", (text.name, text.read_bytes()))]
        )
        assert dataset.status_code == 201, dataset.text
        specification = {
            "model": model.json()["id"],
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": dataset.json()["id"], **SAMPLE},
            "evaluation": {**EVALUATION, "measure": ["latency", "memory"]},
        }
        plan = http.post("/plans", json=specification).json()
        assert plan["valid"] is True
        answer = http.post("/jobs", json=specification, headers={"Idempotency-Key": "once"})
        again = http.post("/jobs", json=specification, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 202
        assert again.json()["id"] == answer.json()["id"]
        job = poll(http, answer.json()["id"])
        assert job["state"] == "succeeded", job["error"]
        check_reports(http, job["id"])
        check_artifact(http, job["result"]["artifact"], tmp_path)
    loaded = load(tmp_path)
    for name in sites(loaded):
        assert abs(loaded["zeros"][name] - loaded["sizes"][name] / 2) <= 1, name
    assert loaded["zeros"]["lm_head.weight"] == 0
    assert plan["pruned"]["nonzeros"] == loaded["parameters"] - sum(loaded["zeros"].values())


def poll(http: httpx2.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        job: dict[str, Any] = http.get(f"/jobs/{job_id}", params={"wait": 20}).json()
        if job["state"] not in {"queued", "running"}:
            return job
    raise AssertionError("the job did not end")


def check_reports(http: httpx2.Client, job_id: str) -> None:
    report = http.get(f"/jobs/{job_id}/report").json()
    assert report["schema"] == "secateur.report/1"
    assert report["target"]["achieved"] == pytest.approx(0.5, abs=0.001)
    assert report["quality"]["dense"]["perplexity"] > 1
    assert report["latency"]["cases"][0]["dense"]["median"] > 0
    page = http.get(f"/jobs/{job_id}/report", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<svg" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org/", "")
    events = http.get(f"/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    stages = [event["data"]["stage"] for event in events if event["type"] == "stage"]
    assert stages[0] == "load"
    assert stages[-1] == "verify"


def check_artifact(http: httpx2.Client, artifact_id: str, out: Path) -> None:
    artifact = http.get(f"/artifacts/{artifact_id}").json()
    for file in artifact["files"]:
        address = f"/artifacts/{artifact_id}/files/{file['path']}"
        start = http.get(address, headers={"Range": "bytes=0-9"})
        rest = http.get(address, headers={"Range": "bytes=10-"})
        assert (start.status_code, rest.status_code) == (206, 206)
        assert hashlib.sha256(start.content + rest.content).hexdigest() == file["sha256"]
    archive = http.get(f"/artifacts/{artifact_id}/archive").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert sorted(tar.getnames()) == sorted(file["path"] for file in artifact["files"])
        tar.extractall(out, filter="data")


def test_two_of_four_in_bfloat16_shards_by_parts(client: Client, text: Path, tmp_path: Path) -> None:
    model = tiny_llama(
        tmp_path / "model", architecture="Qwen2ForCausalLM", tied=True, dtype="bfloat16", shards=3
    )
    uploaded = client.upload_model(model, part_bytes=20_000)
    assert uploaded.dtype == "bfloat16"
    report = journey(
        client,
        model,
        text,
        tmp_path / "out",
        recipe="wanda",
        target={"sparsity": 0.5},
        structure={"granularity": "2:4"},
    )
    loaded = load(tmp_path / "out")
    assert loaded["class"] == "Qwen2ForCausalLM"
    assert loaded["dtype"] == "torch.bfloat16"
    assert {loaded["kept_of_four"][name] for name in sites(loaded)} == {2}
    assert report["granularity"] == "2:4"


def test_dropped_layers_with_distillation(client: Client, llama: Path, text: Path, tmp_path: Path) -> None:
    report = journey(
        client,
        llama,
        text,
        tmp_path,
        recipe="layer-drop",
        target={"layers": 1},
        recovery={"method": "distillation", "budget": {"steps": 4}},
    )
    loaded = load(tmp_path)
    assert loaded["layers"] == 2
    assert loaded["finite"]
    assert report["quality"]["final"] == "recovered"
    assert len(report["dropped"]["kept"]) == 2
    dense = load(llama)
    assert loaded["parameters"] < dense["parameters"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config


def test_lora_keeps_every_zero(client: Client, llama: Path, text: Path, tmp_path: Path) -> None:
    recovery = {"method": "lora", "budget": {"steps": 4}}
    report = journey(
        client, llama, text, tmp_path, recipe="wanda", target={"sparsity": 0.6}, recovery=recovery
    )
    loaded = load(tmp_path)
    for name in sites(loaded):
        assert abs(loaded["zeros"][name] - loaded["sizes"][name] * 0.6) <= 1, name
    assert report["cost"]["recovered"]["nonzeros"] == report["cost"]["pruned"]["nonzeros"]
    assert report["quality"]["recovered"]["perplexity"] != report["quality"]["pruned"]["perplexity"]


def test_classifier(client: Client, bert: Path, labelled: Path, tmp_path: Path) -> None:
    report = journey(client, bert, labelled, tmp_path, recipe="wanda", target={"sparsity": 0.5})
    loaded = load(tmp_path, "AutoModelForSequenceClassification")
    assert loaded["class"] == "BertForSequenceClassification"
    assert loaded["shape"] == [1, 2]
    for name in sites(loaded):
        assert abs(loaded["zeros"][name] - loaded["sizes"][name] / 2) <= 1, name
    assert 0 <= report["quality"]["pruned"]["accuracy"] <= 1
    assert report["damage"]["classes"]


def test_same_specification_same_bytes(client: Client, llama: Path, tmp_path: Path) -> None:
    specification = {
        "model": client.upload_model(llama).id,
        "recipe": "random",
        "target": {"sparsity": 0.3},
        "evaluation": {"measure": []},
        "seed": 7,
    }
    for place in ("one", "two"):
        job = client.wait(client.submit(specification).id, timeout=240).raise_for_state()
        client.download(job.artifact, tmp_path / place)
    files = [
        {path.relative_to(tmp_path / place): path.read_bytes() for path in (tmp_path / place).rglob("*.*")}
        for place in ("one", "two")
    ]
    assert files[0] == files[1]


def test_command_compresses(service: Running, llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "smaller"
    done = command(
        service.url,
        *("compress", str(llama), "--sparsity", "0.5", "--recipe", "wanda", "--granularity", "4:8"),
        *(
            "--calibration",
            str(text),
            "--samples",
            "8",
            "--sequence-length",
            "32",
            "--evaluation-samples",
            "8",
        ),
        *(
            "--gate",
            "perplexity<=100x",
            "--baseline",
            "random",
            "--metadata",
            "team=search",
            "--out",
            str(out),
        ),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    assert done.returncode == 0, done.stderr
    for words in ("non-zeros", "perplexity", "latency", "target: sparsity 0.5 requested, 0.5 achieved"):
        assert words in done.stdout
    assert "baseline random: perplexity" in done.stdout
    assert "gate perplexity <= 100x: passed" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "prune" in done.stderr.splitlines()
    assert json.loads((out / "report.json").read_text())["granularity"] == "4:8"
    assert "<svg" in (out / "report.html").read_text()
    assert load(out)["finite"]
    again = command(service.url, "compress", str(llama), "--sparsity", "0.5", "--out", str(out))
    assert again.returncode == 2
    assert "a model in it already" in again.stderr


def test_command_with_general_text_and_a_domain(
    service: Running, llama: Path, text: Path, tmp_path: Path
) -> None:
    domain = tmp_path / "domain.jsonl"
    rows = [{"text": f"patient {n} has a fever of {n} degrees and was given {n} drops"} for n in range(40)]
    domain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"evaluation": EVALUATION}))
    texts = ("--calibration", str(text), "--domain", str(domain), "--samples", "8", "--sequence-length", "32")
    wish = ("--recipe", "d-pruner", "--sparsity", "0.5", "--gate", "domain_perplexity<=100x")
    order = ("compress", str(llama), "--spec", str(base), *texts, *wish, "--baseline", "random")
    done = command(
        service.url, *order, "--out", str(tmp_path / "out"), XDG_STATE_HOME=str(tmp_path / "state")
    )
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    general, apart = (row for row in table if row[:1] in (["perplexity"], ["perplexity,"]))
    assert apart[1] == "domain"
    assert general[1:3] != apart[2:4]
    assert "gate domain_perplexity <= 100x: passed" in done.stdout
    assert ", domain " in next(line for line in done.stdout.splitlines() if line.startswith("baseline"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["summary"]["domain_quality"]["metric"] == "perplexity"
    assert "perplexity, domain" in (tmp_path / "out" / "report.html").read_text()
    assert load(tmp_path / "out")["finite"]


def test_command_with_a_gate_that_fails(service: Running, llama: Path, text: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"evaluation": EVALUATION}))
    done = command(
        service.url,
        *(
            "compress",
            str(llama),
            "--spec",
            str(base),
            "--sparsity",
            "0.9",
            "--recipe",
            "random",
            "--calibration",
            str(text),
        ),
        *("--samples", "8", "--sequence-length", "32", "--gate", "perplexity<=1.0", "--json"),
        *("--out", str(tmp_path / "out")),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["gates_passed"] is False
    assert result["job"]["state"] == "succeeded"
    job, artifact = result["job"]["id"], result["job"]["result"]["artifact"]
    assert command(service.url, "jobs", "wait", job, "--quiet").returncode == 3
    events = command(service.url, "jobs", "events", job, "--follow", "--json").stdout.splitlines()
    assert json.loads(events[-1])["type"] == "done"
    listed = json.loads(command(service.url, "jobs", "list", "--json").stdout)
    assert job in [item["id"] for item in listed]
    fetched = command(service.url, "artifacts", "download", artifact, "--out", str(tmp_path / "again"))
    assert fetched.returncode == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_command_plans(service: Running, llama: Path, text: Path, tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path)}
    layers = ("plan", str(llama), "--calibration", str(text), "--target")
    good = command(service.url, *layers, "layers=1", **state)
    assert good.returncode == 0, good.stderr
    assert "parameters" in good.stdout
    bad = command(service.url, *layers, "layers=3", "--json", **state)
    assert bad.returncode == 2, bad.stderr
    assert "/target" in bad.stdout
