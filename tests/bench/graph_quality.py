"""CIFAR-10 networks as graphs: accuracy after pruning and after the same recovery, beside Torch-Pruning.

`script/bench graph_quality [--models resnet20 resnet56] [--speedups 2.0 2.55] [--seeds 3] [--only NAME ...]
[--steps 200]`; for the peer's lines `tests/bench/peers/setup` first. A run that was broken off goes on where
it was. Every line is a job on `../shared/models/*-cifar10/model.onnx` (or `model-conv-shortcut.onnx`, which
the peer can read) and is recovered by the same steps of distillation; states are chosen on 512 training
images that are held out, figures are those of test images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compression import pipeline
from tests.bench.common import RESULTS, machine, reference, table
from tests.bench.peer_graphs import Peer, peer_line
from tests.engine.jobs import Recorder, request, write_job

KEPT = RESULTS / "graph_quality.json"
HOW = {
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 32, "width": 32},
}
CALIBRATED, JUDGED, BATCH = 512, 5000, 64
MODELS = {"resnet20": "resnet20-cifar10", "resnet56": "resnet56-cifar10"}
TRAINED = ("autobot", "depgraph", "growing-reg", "mask-sparsity", "oto", "smcp")
"""Recipes that train while they prune: their own steps come on top of the recovery's and are stated."""


@dataclass(frozen=True)
class Line:
    """A recipe with options; `shortcut`: on the graph whose shortcuts are convolutions."""

    recipe: str
    options: dict[str, Any] = field(default_factory=dict)
    shortcut: bool = False


def lines() -> dict[str, Line | Peer]:
    """What is compared, by the name of its line."""
    plain = (
        "obspa", "random-channels", "group-l1", "group-l2", "taylor", "hap", "oba", "hrank", "fpgm", "lrp",
        "beta-rank", "udfc", "pagcp", "knapsack-kd", *TRAINED,
    )  # fmt: skip
    found: dict[str, Line | Peer] = {name: Line(name) for name in plain}
    for name in ("group-l2", "taylor"):
        found[f"{name}, moments"] = Line(name, {"update": "moments"})
    for name in ("obspa", "taylor", "group-l2", "random-channels"):
        found[f"{name}, conv shortcuts"] = Line(name, {}, shortcut=True)
    for name in ("group-norm", "taylor", "random"):
        found[f"Torch-Pruning {name}, conv shortcuts"] = Peer(name)
    return found


def recovery(steps: int, seed: int) -> dict[str, Any]:
    """The recovery of every line."""
    return {
        "method": "distillation",
        "dataset": "dst_train",
        "budget": {"steps": steps},
        "options": {"flip": True, "batch_size": BATCH, "evaluate_every": 50},
    }


def job(folder: Path, line: Line, share: float, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Figures of one job."""
    spec = {
        "recipe": line.recipe,
        "target": {"macs": share},
        "options": line.options,
        "calibration": {"dataset": "dst_train", "samples": CALIBRATED, "seed": seed},
        "recovery": recovery(steps, seed),
        "evaluation": {"dataset": "dst_test", "samples": JUDGED, "measure": []},
        "preprocessing": HOW,
        "seed": seed,
    }
    data = reference("data", "cifar10")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "model").mkdir()
        name = "model-conv-shortcut.onnx" if line.shortcut else "model.onnx"
        (place / "model" / "model.onnx").symlink_to(folder / name)
        for kind in ("train", "test"):
            (place / f"{kind}.parquet").symlink_to(data / f"cifar10-{kind}.parquet")
        write_job(place, "model", {"dst_train": "train.parquet", "dst_test": "test.parquet"}, spec)
        asked = request(place, place / "work")
        begun = time.monotonic()
        outcome = pipeline.run(asked, Recorder())
        report = json.loads(outcome.report.read_text())
    quality, cost = report["quality"], report["cost"]
    return {
        "dense": quality["dense"]["accuracy"],
        "pruned": quality["pruned"]["accuracy"],
        "recovered": quality["recovered"]["accuracy"],
        "macs": cost["pruned"]["macs"] / cost["dense"]["macs"],
        "parameters": cost["pruned"]["parameters"] / cost["dense"]["parameters"],
        "seconds": time.monotonic() - begun,
    }


def report(results: dict[str, Any], steps: int, threads: int) -> str:
    """The page in Markdown."""
    parts = [
        "# CIFAR-10 networks as graphs\n\n`script/bench graph_quality`\n\n"
        f"{machine()}, {threads} thread(s) a run\n\n"
        f"{CALIBRATED} calibration images; accuracy on {JUDGED:,} test images (dense, pruned, recovered), "
        f"mean ± deviation over seeds; recovery of every line: {steps} steps of {BATCH} images, distillation "
        "from the dense graph, the state chosen on 512 training images held out. Recipes that train while "
        f"they prune ({', '.join(TRAINED)}) have their own steps before it. Torch-Pruning 1.6.1 prunes the "
        "graph with conv shortcuts, with BatchNorms as ours puts them back, global ranking, until the same "
        "multiply-accumulates; its statistics are measured anew, then our recovery goes over it as over ours."
    ]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for key, found in results.items():
        model, speedup, name, _ = key.split("|")
        groups.setdefault((model, speedup), {}).setdefault(name, []).append(found)
    for (model, speedup), by_name in sorted(groups.items()):
        rows = [[name, *_row(found)] for name, found in by_name.items() if "failed" not in found[0]]
        rows.sort(key=lambda row: -float(str(row[3]).split(" ")[0]))
        parts.append(f"## {model}, {speedup}x fewer multiply-accumulates")
        parts.append(
            table(["run", "dense", "pruned", "recovered", "MACs", "parameters", "seeds", "seconds"], rows)
        )
        parts += [f"{name}: {one[0]['failed']}" for name, one in by_name.items() if "failed" in one[0]]
    return "\n\n".join(parts) + "\n"


def _row(found: list[dict[str, Any]]) -> list[Any]:
    def spread(name: str) -> str:
        values = [100 * one[name] for one in found]
        told = f"{statistics.mean(values):.2f}"
        return told + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")

    macs, parameters, seconds = (
        statistics.mean(one[name] for one in found) for name in ("macs", "parameters", "seconds")
    )
    return [spread("dense"), spread("pruned"), spread("recovered"), macs, parameters, len(found), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--speedups", type=float, nargs="*", default=[2.0, 2.55])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in range(arguments.seeds):
        for model in arguments.models:
            for speedup in arguments.speedups:
                for name, line in lines().items():
                    key = f"{model}|{speedup}|{name}|{seed}"
                    if key in results or (arguments.only and name not in arguments.only):
                        continue
                    folder = reference("models", MODELS[model])
                    try:
                        if isinstance(line, Peer):
                            found = peer_line(
                                folder, line, 1 / speedup, seed, arguments.steps, arguments.threads
                            )
                        else:
                            found = job(folder, line, 1 / speedup, seed, arguments.steps, arguments.threads)
                    except Exception as error:  # a line that fails is a line of the table
                        found = {"failed": f"{type(error).__name__}: {error}"}
                    print(key, found, flush=True)
                    # Read anew: several runs may take parts at a time.
                    results = (json.loads(KEPT.read_text()) if KEPT.exists() else {}) | {key: found}
                    KEPT.write_text(json.dumps(results, indent=1) + "\n")
                    text = report(results, arguments.steps, arguments.threads)
                    (RESULTS / "graph_quality.md").write_text(text)


if __name__ == "__main__":
    main()
