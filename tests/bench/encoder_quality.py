"""MiniLM with half of its encoder's multiply-accumulates: accuracy and embeddings, without retraining.

`script/bench encoder_quality [--seeds 3] [--only NAME ...] [--kind classifier|embeddings]`; a run that was
broken off goes on where it was. The classifier is MiniLM trained on sentence-polarity (`polarity.py`, kept
in a temporary folder); whatever is chosen is chosen by the accuracy on the 500 rows of train.jsonl that are
left out of training and calibration, and the figures are those of test.jsonl. The embeddings are those of
MiniLM as it comes. What a job leaves is loaded by transformers' own class and judged here, against a dense
model that runs once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compression import pipeline
from compression.anatomy import inspect
from compression.anatomy.macs import count_macs
from compression.loading.streamed import read_config
from compression.loading.weights import WeightReader
from compression.recipes import recipes
from tests.bench.common import RESULTS, machine, table
from tests.bench.polarity import LENGTH, Bench, Judge, load, prepared
from tests.engine.jobs import Recorder, request, write_job

MACS, LAYERS, SAMPLES = 0.5, 3, 128
KEPT = RESULTS / "encoder_quality.json"
KINDS = ("classifier", "embeddings")
UNITS = "neuron"
"""Of BERT neurons and whole layers can go: its class derives the width of a head from their number."""


@dataclass(frozen=True)
class Step:
    """One job: `layers` go, or else neurons until `MACS` of the dense model's are left."""

    recipe: str
    options: dict[str, Any] = field(default_factory=dict)
    layers: int = 0
    samples: int = SAMPLES


def unit(name: str, samples: int = SAMPLES, **options: Any) -> Step:
    """Neurons, in equal numbers from every layer."""
    return Step(name, options, samples=samples)


def depth(name: str, layers: int, samples: int = SAMPLES, **options: Any) -> Step:
    """Whole layers."""
    return Step(name, options, layers, samples)


# Compositions that no recipe stands for: of axes, and of jobs one after another.
EXTRA: dict[str, tuple[Step, ...]] = {
    "flap + least-squares": (unit("flap", update=["least-squares"]),),
    "vbp, 512 rows": (unit("vbp", 512),),
    "flap, 512 rows": (unit("flap", 512),),
    "vbp, least-squares, then bias, 512 rows": (
        unit("vbp", 512, update=["least-squares", "bias-compensation"]),
    ),
    **{
        f"{layers} by sleb, then {second}, 512 rows": (
            depth("sleb", layers, 512, layer_sequences=256),
            unit(second, 512),
        )
        for layers in (1, 2)
        for second in ("vbp", "flap", "ziplm")
    },
    **{
        f"{layers} by shortgpt, then vbp, 512 rows": (depth("shortgpt", layers, 512), unit("vbp", 512))
        for layers in (1, 2)
    },
}


def wanted() -> dict[str, tuple[Step, ...]]:
    """All runs by name: the recipes of the registry that BERT has, with one width for all layers, and
    compositions."""
    found: dict[str, tuple[Step, ...]] = {}
    for one in recipes:
        if "bert" not in one.families:
            continue
        if one.granularities == ("layer",):
            found[one.name] = (depth(one.name, LAYERS),)
        elif UNITS in one.granularities:
            uniform = one.axes.get("allocation") == "uniform"
            name = one.name if uniform else f"{one.name}, one width"
            found[name] = (unit(one.name, **({} if uniform else {"allocation": "uniform"})),)
    return found | EXTRA


def needs(steps: tuple[Step, ...]) -> set[str]:
    """What the steps need of the data."""
    return set().union(*(recipes[step.recipe].needs for step in steps))


def macs(folder: Path) -> int:
    """Multiply-accumulates for a sequence of `LENGTH` tokens."""
    found = inspect(read_config(folder), WeightReader(folder).names())
    return count_macs(found, LENGTH).total


def job(model: Path, data: dict[str, Path], step: Step, ratio: float, seed: int, scratch: Path) -> Path:
    """The artifact of one job on a model."""
    target: dict[str, Any] = {"layers": step.layers} if step.layers else {"macs": ratio}
    specification = {
        "recipe": step.recipe,
        "target": target,
        "structure": {"granularity": "layer" if step.layers else UNITS},
        "options": step.options,
        "seed": seed,
        "calibration": {
            "dataset": "dst_train",
            "samples": step.samples,
            "sequence_length": LENGTH,
            "seed": seed,
        },
        # The artifact is judged outside the job: there the dense model runs once for all jobs.
        "evaluation": {"dataset": "dst_validation", "samples": 8, "sequence_length": LENGTH, "measure": []},
    }
    scratch.mkdir()
    (scratch / "model").symlink_to(model)
    for part in ("train", "validation"):
        (scratch / f"{part}.jsonl").symlink_to(data[part])
    datasets = {"dst_train": "train.jsonl", "dst_validation": "validation.jsonl"}
    write_job(scratch, "model", datasets, specification)
    return pipeline.run(request(scratch, scratch / "work"), Recorder()).artifact


class Runs:
    """Runs compositions on one of the two models."""

    def __init__(self, bench: Bench, kind: str) -> None:
        self._dense = bench.classifier if kind == "classifier" else bench.base
        self._data = bench.data
        self._judges = {
            part: Judge(self._dense, bench.data[part])
            for part in (("validation", "test") if kind == "classifier" else ("test",))
        }
        self.dense = {part: judge.dense for part, judge in self._judges.items()}
        self._macs = macs(self._dense)

    def __call__(self, steps: tuple[Step, ...], seed: int) -> dict[str, Any]:
        """Figures of a composition: by part, with the share of multiply-accumulates that is left, and
        seconds of the jobs."""
        with tempfile.TemporaryDirectory() as scratch:
            model, begun = self._dense, time.monotonic()
            for number, step in enumerate(steps):
                ratio = MACS * self._macs / macs(model)
                model = job(model, self._data, step, ratio, seed, Path(scratch) / str(number))
            seconds = time.monotonic() - begun
            loaded = load(model)
            judged = {part: judge(loaded) for part, judge in self._judges.items()}
            return {**judged, "macs": macs(model) / self._macs, "seconds": seconds}


def known() -> dict[str, Any]:
    """What was taken so far."""
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return found


def mean(values: list[float], digits: int = 1, scale: float = 1.0) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    noise = f" ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values) * scale:.{digits}f}{noise}"


def rows(results: dict[str, dict[str, Any]]) -> Iterator[list[Any]]:
    """Lines of the table, the best on the validation rows first."""

    def of(kind: str, name: str) -> list[dict[str, Any]]:
        return [one for key, one in results.items() if key.startswith(f"{kind}|{name}|")]

    def validation(name: str) -> float:
        return statistics.mean([one["validation"]["accuracy"] for one in of("classifier", name)] or [0.0])

    names = {key.split("|")[1] for key in results if "|" in key} - {"dense"}
    for name in sorted(names, key=lambda name: (-validation(name), name)):
        found, embedded = of("classifier", name), of("embeddings", name)
        yield [
            name,
            *(mean([one[part]["accuracy"] for one in found], 1, 100) for part in ("validation", "test")),
            mean([one["test"]["cosine"] for one in found], 3),
            mean([one["test"]["cosine"] for one in embedded], 3),
            len(found),
            max(one["macs"] for one in found + embedded),
            mean([one["seconds"] for one in found + embedded], 0),
        ]


def order(
    names: dict[str, tuple[Step, ...]], seeds: int, only_kind: str | None, only: list[str]
) -> list[tuple[str, str, int]]:
    """Kind, name and seed of all runs: everything once before anything twice, what has no chance in it once
    only."""
    return [
        (kind, name, seed)
        for seed in range(seeds)
        for kind in ((only_kind,) if only_kind else KINDS)
        for name, steps in names.items()
        if (not only or name in only)
        and not (kind == "embeddings" and "loss" in needs(steps))
        and (seed == 0 or needs(steps) or steps[0].recipe.startswith("random"))
    ]


def report(results: dict[str, dict[str, Any]]) -> str:
    """The whole page in Markdown."""
    dense = results["classifier|dense"]
    accuracies = {part: dense[part]["accuracy"] * 100 for part in ("validation", "test")}
    found = list(rows(results))
    best = found[0]
    verdict = (
        f"Best on the validation rows: **{best[0]}**, {best[2]}% on the test rows against "
        f"{accuracies['test']:.1f}% of the dense model."
    )
    headings = [
        "recipe", "accuracy, validation", "accuracy, test", "cosine, classifier", "cosine, MiniLM", "seeds",
        "MACs ratio", "seconds of a job",
    ]  # fmt: skip
    return (
        f"# Half of MiniLM's multiply-accumulates\n\n`script/bench encoder_quality`\n\n{machine()}\n\n"
        f"MiniLM trained on sentence-polarity: {accuracies['validation']:.1f}% of the 500 validation rows "
        f"right, {accuracies['test']:.1f}% of the 1,000 test rows. Neurons go until half of the encoder's "
        f"multiply-accumulates are left ({LENGTH} tokens), or {LAYERS} of its six layers; no retraining; "
        f"calibration on {SAMPLES} rows that the classifier was trained on, where the name says nothing "
        "else. Accuracies in percent; cosines of mean-pooled last hidden states to the dense model's on the "
        "test rows, of the classifier and of MiniLM as it comes (recipes that need a loss need a "
        "classifier); mean ± standard deviation over seeds of calibration. The order is that of the "
        "validation rows. Seconds were taken beside other work on the machine.\n\n"
        f"{verdict}\n\n" + table(headings, found) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--kind", choices=KINDS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench, names, runs = prepared(), wanted(), {}
    for kind, name, seed in order(names, arguments.seeds, arguments.kind, arguments.only):
        key = f"{kind}|{name}|{seed}"
        if key in known():
            continue
        if kind not in runs:
            runs[kind] = Runs(bench, kind)
        found = runs[kind](names[name], seed)
        print(key, found, flush=True)
        # Read anew: parts may be taken by several runs at a time.
        results = known() | {f"{kind}|dense": runs[kind].dense, key: found}
        KEPT.write_text(json.dumps(results, indent=1) + "\n")
        if "classifier|dense" in results:
            (RESULTS / "encoder_quality.md").write_text(report(results))


if __name__ == "__main__":
    main()
