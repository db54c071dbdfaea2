"""The demonstration: trains a small model, compresses it twice through a service of its own, and compares.

    script/demo [--out DIR] [--seconds 60]

Leaves the dense model, both smaller ones and their reports in DIR (./demo-output), and nothing else anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import corpus
import embedded
from rich.table import Table

from secateur import Client, SecateurError, closing, display
from secateur.progress import Steps

HERE = Path(__file__).resolve().parent
SAMPLE = {"samples": 128, "sequence_length": 128}
RUNS: dict[str, dict[str, Any]] = {
    "wanda-50": {"recipe": "wanda", "target": {"sparsity": 0.5}},
    "layer-drop": {
        "recipe": "layer-drop",
        "target": {"layers": 1},
        "recovery": {"method": "distillation", "budget": {"steps": 200}, "options": {"batch_size": 4}},
    },
}
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
text = AutoTokenizer.from_pretrained(sys.argv[1])("def main", return_tensors="pt")
made = model.generate(**text, max_new_tokens=8, do_sample=False)
layers, parameters = model.config.num_hidden_layers, model.num_parameters()
print(f"{type(model).__name__}, {layers} layers, {parameters:,} parameters, generated", repr(
    AutoTokenizer.from_pretrained(sys.argv[1]).decode(made[0])))
"""


def say(text: str) -> None:
    print(text, flush=True)


def train(data: Path, out: Path, seconds: float) -> dict[str, Any]:
    """Train in a process of its own and return what it measured."""
    say(f"Training a small Llama-type model on this Python's own sources, {seconds:g} seconds on one core:")
    done = subprocess.run(
        [sys.executable, HERE / "train.py", "--data", data, "--out", out, "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"Training failed. {done.stdout}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(
        f"  {result['parameters']:,} parameters, {result['steps']} steps: validation perplexity "
        f"{result['perplexity']:.2f}, far below {result['unigram_perplexity']:.2f} of the unigram model"
    )
    return result


def compress(client: Client, model: Path, data: dict[str, Path], out: Path) -> dict[str, dict[str, Any]]:
    """Upload, run every job, download. Returns the reports by name."""
    reports = {}
    with Steps() as steps:
        uploaded = client.upload_model(model, "demo", steps.transfer("upload model"))
        sent = {
            name: client.upload_dataset(path, progress=steps.transfer(f"upload {name}"))
            for name, path in data.items()
        }
        for name, wish in RUNS.items():
            specification = {
                "model": uploaded.id,
                **wish,
                "calibration": {"dataset": sent["calibration"].id, **SAMPLE},
                "evaluation": {"dataset": sent["validation"].id, **SAMPLE},
            }
            if "recovery" in wish:
                specification["recovery"] = {**wish["recovery"], "dataset": sent["train"].id}
            job = client.submit(specification)
            display.remark(f"{name}: {job.id}")
            job = client.wait(job.id, steps.job).raise_for_state()
            client.download(job.artifact, out / name, steps.transfer("download"))
            reports[name] = client.report(job.id)
            (out / name / "report.json").write_text(json.dumps(reports[name], indent=2), encoding="utf-8")
            (out / name / "report.html").write_text(client.report(job.id, "html"), encoding="utf-8")
    return reports


def compare(reports: dict[str, dict[str, Any]]) -> Table:
    """One column for the dense model, one for each result in its last state.

    Latencies are ratios: each was measured against the dense model within its own job, side by side.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, report in reports.items():
        columns, lines = closing.comparison(report)
        for label, *cells in lines:
            timed = label.startswith("latency")
            row = rows.setdefault(label, {"dense": "1.000x" if timed else cells[0]})
            row[name] = cells[-1] if timed else cells[columns.index("ratio") - 2]
        headline = report["quality"]["headline"]
        before = report["quality"]["pruned"][headline]
        rows.setdefault(f"{headline} before recovery", {})[name] = display.number(before)
    head = ["dense", *reports]
    cells_of = ([label, *(row.get(name) for name in head)] for label, row in rows.items())
    return display.table(["", *head], cells_of, right=range(1, len(head) + 1))


def check(folder: Path) -> None:
    """Load the artifact in a fresh process with nothing but transformers."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{folder} does not load in transformers:\n{done.stderr}")
    say(f"  {folder.name}: {done.stdout.strip()}")


def demonstrate(out: Path, seconds: float) -> None:
    begun = time.monotonic()
    for name in ("dense", *RUNS):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="secateur-demo-") as temporary:
        scratch = Path(temporary)
        os.environ["XDG_STATE_HOME"] = str(scratch / "state")
        say("Starting the embedded service.")
        with embedded.running(scratch / "home", scratch / "up.log") as url, Client(url) as client:
            say(f"  it answers at {url}")
            data = corpus.write(scratch)
            train(scratch, out / "dense", seconds)
            reports = compress(client, out / "dense", data, out)
        say("")
        display.output.print(compare(reports))
        say("\nBoth results in stock transformers, AutoModelForCausalLM.from_pretrained:")
        for name in RUNS:
            check(out / name)
    say(f"\nDone in {time.monotonic() - begun:.0f} s; everything is stopped. The models and their reports:")
    for name in RUNS:
        say(f"  {out / name / 'report.html'}")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/demo", description="Compress a small model twice, from nothing."
    )
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="where results are left")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        demonstrate(given.out.resolve(), given.seconds)
    except KeyboardInterrupt:
        print("Interrupted; everything is stopped.", file=sys.stderr)
        return 130
    except SecateurError as error:
        print(f"The demonstration failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
