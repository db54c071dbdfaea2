"""The `secateur` command as a process: exit statuses, words on the right stream, JSON, and server roles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur import cli, errors, specifying
from secateur.display import moment, number, ratio, seconds, size
from secateur.specifying import Texts
from tests.unit.crooked_server import crooked


def command(
    *arguments: str, url: str = "http://127.0.0.1:9", **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SECATEUR_")}
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments],
        capture_output=True,
        text=True,
        env={**clean, "SECATEUR_URL": url, "NO_COLOR": "1", **environment},
        timeout=60,
        check=False,
    )


def model(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 5000)
    return folder


def test_unreachable_service_is_status_4(tmp_path: Path) -> None:
    done = command("jobs", "list")
    assert done.returncode == 4
    assert done.stdout == ""
    assert "connection refused" in done.stderr
    done = command("jobs", "list", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["code"] == "ServiceUnreachable"


def test_default_address_says_how_to_start_a_service() -> None:
    # Another program may well answer there; then there is nothing to say.
    done = command("jobs", "list", url="")
    assert done.returncode != 4 or "secateur up" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Usage"),
        (("nonsense",), "No such command"),
        (("compress",), "PATH"),
        (("compress", "{folder}", "--out", "{out}"), "--sparsity"),
        (("compress", "{folder}", "--sparsity", "0.5"), "--out"),
        (("compress", "{folder}", "--sparsity", "half", "--out", "{out}"), "valid number"),
        (("compress", "{folder}", "--sparsity", "0.5", "--target", "layers=2", "--out", "{out}"), "not both"),
        (("compress", "{folder}", "--target", "layers", "--out", "{out}"), "KIND=VALUE"),
        (("compress", "{folder}", "--sparsity", "0.5", "--gate", "nice", "--out", "{out}"), "METRIC"),
        (("compress", "{folder}", "--sparsity", "0.5", "--option", "x", "--out", "{out}"), "KEY=VALUE"),
        (
            ("compress", "{folder}", "--sparsity", "0.5", "--calibration", "{out}/no", "--out", "{out}"),
            "no file",
        ),
        (("compress", "{folder}/no", "--sparsity", "0.5", "--out", "{out}"), "no folder"),
        (("compress", "{folder}", "--sparsity", "0.5", "--out", "{folder}"), "a model in it"),
    ],
)
def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    places = {"folder": str(model(tmp_path / "model")), "out": str(tmp_path / "out")}
    done = command(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_refused_specification_is_status_2_with_pointers(tmp_path: Path) -> None:
    document = {
        "code": "specification_invalid",
        "detail": "The specification is not valid.",
        "errors": [{"pointer": "/options/alocation", "message": "is unknown; did you mean allocation?"}],
    }
    arguments = (
        "compress",
        str(model(tmp_path / "model")),
        "--sparsity",
        "0.5",
        "--out",
        str(tmp_path / "out"),
    )
    with crooked() as server:
        server.trouble("POST", "/v1/jobs", 422, body=document)
        server.trouble("POST", "/v1/jobs", 422, body=document)
        done = command(*arguments, url=server.url, XDG_STATE_HOME=str(tmp_path / "state"))
        machine = command(*arguments, "--json", url=server.url, XDG_STATE_HOME=str(tmp_path / "state"))
    assert done.returncode == machine.returncode == 2
    assert "/options/alocation: is unknown" in done.stderr
    assert json.loads(machine.stdout)["error"]["errors"][0]["pointer"] == "/options/alocation"


def test_failed_job_is_status_1(tmp_path: Path) -> None:
    with crooked() as server:
        job = {"id": "job_4", "state": "failed", "stage": "load", "attempt": 1}
        server.jobs["job_4"] = {**job, "error": {"code": "weights_not_finite", "message": "NaN in a.weight"}}
        done = command("jobs", "wait", "job_4", url=server.url)
    assert done.returncode == 1
    assert "NaN in a.weight" in done.stderr


def test_interruption_cancels_the_job(tmp_path: Path) -> None:
    with crooked() as server:
        server.jobs["job_4"] = {"id": "job_4", "state": "running", "stage": "prune", "attempt": 1}
        environment = {**os.environ, "SECATEUR_URL": server.url, "XDG_STATE_HOME": str(tmp_path / "state")}
        folder, out = str(model(tmp_path / "model")), str(tmp_path / "out")
        line = [sys.executable, "-m", "secateur", "compress", folder, "--sparsity", "0.5", "--out", out]
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)
        while not server.requests("GET", "/v1/jobs/"):
            assert process.poll() is None
            time.sleep(0.02)
        job_id = next(made["id"] for made in server.created.values() if made["id"].startswith("job"))
        server.jobs[job_id] = {"id": job_id, "state": "running", "stage": "prune", "attempt": 1}
        server.trouble("POST", f"/v1/jobs/{job_id}/cancel", 200, body=server.jobs[job_id])
        process.send_signal(signal.SIGTERM)
        while not server.requests("POST", "/cancel"):
            assert process.poll() is None
            time.sleep(0.02)
        server.jobs[job_id] = {"id": job_id, "state": "cancelled", "attempt": 1}
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "is cancelled" in said


def test_roles_without_their_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur import roles

    found = roles.importlib.util.find_spec
    monkeypatch.setattr(
        roles.importlib.util, "find_spec", lambda name: None if name == "fastapi" else found(name)
    )
    with pytest.raises(errors.RoleUnavailable, match=r"fastapi.*\n.*secateur\[service\]"):
        roles.command("gateway", [])
    monkeypatch.undo()
    line = roles.command("up", ["--port", "0", "--help"])
    assert line[1:] == ["-P", "-m", "service", "up", "--port", "0", "--help"]


def test_roles_pass_every_argument_through() -> None:
    done = command("up", "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_client_imports_nothing_heavy() -> None:
    script = "import sys, secateur.cli; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "fastapi", "sqlalchemy", "celery", "compression", "service"}
    assert not heavy.intersection(done.stdout.split())


def test_doctor_tells_what_is_missing() -> None:
    done = command("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 2
    assert findings["service"]["verdict"] == "fault"
    assert "secateur up" in findings["service"]["text"]
    assert findings["python"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("perplexity<=1.1x", {"metric": "perplexity", "max_ratio": 1.1}),
        ("perplexity <= 30", {"metric": "perplexity", "max": 30.0}),
        ("accuracy>=0.9", {"metric": "accuracy", "min": 0.9}),
        ("accuracy >= 9e-1x", {"metric": "accuracy", "min_ratio": 0.9}),
    ],
)
def test_gates_in_words(text: str, gate: dict[str, object]) -> None:
    assert specifying.gate(text) == gate


@pytest.mark.parametrize(
    "text", ["perplexity", "perplexity<1", "<=1", "perplexity<=x", "perplexity<=1.1y", "a<=1.2.3"]
)
def test_gates_that_say_nothing(text: str) -> None:
    with pytest.raises(errors.InputInvalid, match="--gate"):
        specifying.gate(text)


def test_specification_has_only_what_was_asked_for() -> None:
    wish = specifying.Wish(target={"sparsity": 0.5})
    assert specifying.specification(wish, "mdl_1", Texts()) == {
        "model": "mdl_1",
        "target": {"sparsity": 0.5},
        "recipe": "magnitude",
    }


def test_specification_of_everything() -> None:
    wish = specifying.Wish(
        base={"recipe": "random", "calibration": {"samples": 8}, "recovery": "none", "metadata": {"a": "1"}},
        target=specifying.target(None, "layers=2"),
        options={"keep_first": 2},
        samples=16,
        recovery="lora",
        recovery_steps=100,
        gates=[specifying.gate("perplexity<=1.1x")],
        baselines=["random"],
        dtype="bfloat16",
        formats=["gguf", "gguf"],
        layout="packaged",
        metadata={"b": "2"},
        seed=0,
        priority=0,
    )
    assert specifying.specification(wish, "mdl_1", Texts("dst_1", "dst_2", "dst_3")) == {
        "model": "mdl_1",
        "recipe": "random",
        "target": {"layers": 2},
        "options": {"keep_first": 2},
        "calibration": {"dataset": "dst_1", "samples": 16},
        "recovery": {"method": "lora", "dataset": "dst_3", "budget": {"steps": 100}},
        "evaluation": {
            "dataset": "dst_2",
            "gates": [{"metric": "perplexity", "max_ratio": 1.1}],
            "baselines": ["random"],
        },
        "output": {"dtype": "bfloat16", "formats": ["safetensors", "gguf"], "layout": "packaged"},
        "metadata": {"a": "1", "b": "2"},
        "seed": 0,
        "priority": 0,
    }


def test_specification_with_a_domain() -> None:
    given = Texts("dst_1", None, None, "domain.jsonl", "judge.jsonl")
    assert given.given() == ["dst_1", "domain.jsonl", "judge.jsonl"]
    texts = given.replaced({"domain.jsonl": "dst_2", "judge.jsonl": "dst_3", "dst_1": "dst_1"})
    base = {"calibration": {"domain": {"samples": 9}}, "recipe": "d-pruner"}
    wish = specifying.Wish(base=base, target={"sparsity": 0.5})
    found = specifying.specification(wish, "mdl_1", texts)
    assert found["calibration"] == {"dataset": "dst_1", "domain": {"dataset": "dst_2", "samples": 9}}
    assert found["evaluation"] == {"domain": {"dataset": "dst_3"}}


def test_usual_recipes() -> None:
    layers = specifying.Wish(target={"layers": 1})
    assert specifying.specification(layers, "m", Texts("d"))["recipe"] == "layer-drop"
    tokens = specifying.Wish(target={"sparsity": 0.5}, granularity="vocabulary")
    assert specifying.specification(tokens, "m", Texts("d"))["recipe"] == "vocab-trim"
    half = specifying.Wish(target={"sparsity": 0.5})
    assert specifying.specification(half, "m", Texts("d"))["recipe"] == "wanda"


def test_values_in_words() -> None:
    assert specifying.assignments("--option", ["a=1", "b=true", "c=text", "d=0.5", "e=x=y"]) == {
        "a": 1,
        "b": True,
        "c": "text",
        "d": 0.5,
        "e": "x=y",
    }
    assert specifying.target(None, "bytes=1.2GB") == {"bytes": "1.2GB"}
    assert specifying.target(None, None, "0.5") == {"macs": 0.5}
    assert specifying.target(None, None, "1.5G") == {"macs": "1.5G"}
    assert (size(999), size(1500), size(2.5e9), size(None)) == ("999 B", "1.5 kB", "2.5 GB", "-")
    assert (number(1234567), number(3.14159), number(None)) == ("1,234,567", "3.142", "-")
    assert (seconds(0.0012), seconds(3.21), seconds(245), seconds(3723)) == (
        "1.2 ms",
        "3.21 s",
        "4:05",
        "1:02:03",
    )
    assert (ratio(1, 2), ratio(None, 2), ratio(1, 0)) == ("0.500x", "-", "-")
    assert moment("2026-01-02T03:04:05.678Z") == "2026-01-02 03:04:05"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InputInvalid("x"), 2),
        (errors.api_error(422, {}), 2),
        (errors.api_error(401, {}), 2),
        (errors.api_error(503, {}), 4),
        (errors.ServiceUnreachable("u", "r"), 4),
        (errors.TransferCorrupted("x"), 1),
        (errors.RoleUnavailable("x"), 2),
    ],
)
def test_exit_statuses(error: errors.SecateurError, status: int) -> None:
    assert cli.exit_status(error) == status
