"""Perplexity of recipes that remove neurons, heads, hidden channels, layers and ranks on llama-5m, through
whole jobs, unrecovered.

Every job aims at the same number of parameters: those without 20, 30 or 50% of the blocks'. Whole layers are
the exception: the nearest number of them goes, and the table says how many parameters that leaves.

`script/bench width_quality [--seeds 3] [--only RECIPE ...]`; a run that was broken off goes on where it was.
Calibration comes from train.jsonl, the figures from validation.jsonl and WikiText-2 (validation).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from compression import pipeline
from compression.anatomy import inspect
from compression.loading.streamed import read_config
from compression.loading.weights import WeightReader
from compression.recipes import recipes
from tests.bench.common import RESULTS, machine, reference, table
from tests.engine.jobs import Recorder, request, write_job

LEVELS = (0.2, 0.3, 0.5)
LAYERS = 6
# Compositions that no recipe stands for.
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "flap, standardized": ("flap", {"allocation": "standardized"}),
    "flap + least-squares": ("flap", {"update": ["least-squares"]}),
    "ziplm, knapsack": ("ziplm", {"allocation": "knapsack"}),
    "layer-drop + merge": ("layer-drop", {"update": "merge"}),
    "svd-llm, energy": ("svd-llm", {"allocation": "energy"}),
    "svd-llm + refit": ("svd-llm", {"sequential": False, "update": ["refit"]}),
    "slicegpt, per-layer": ("slicegpt", {"rotation": "per-layer"}),
}
SAMPLES, LENGTH, EVALUATED = 128, 256, 64
DATA = {
    "dst_train": "train.jsonl",
    "dst_general": "validation.jsonl",
    "dst_wiki": "wikitext-2-validation.txt",
}


def run(recipe: str, sparsity: float, seed: int) -> dict[str, float]:
    """One job: perplexities before and after, share of the model's parameters that is left."""
    judged = {"samples": EVALUATED, "sequence_length": LENGTH}
    calibration = {"dataset": "dst_train", "samples": SAMPLES, "sequence_length": LENGTH, "seed": seed}
    name, options = EXTRA.get(recipe, (recipe, {}))
    offered = recipes[name]
    layers = offered.granularities == ("layer",)
    granularity = "neuron+head" if "neuron+head" in offered.granularities else offered.granularities[0]
    specification: dict[str, Any] = {
        "recipe": name,
        "target": {"layers": round(sparsity * LAYERS)} if layers else {"parameters": target(sparsity)},
        "structure": {"granularity": granularity},
        "options": options,
        "seed": seed,
        "evaluation": {"dataset": "dst_general", "domain": {"dataset": "dst_wiki"}, "measure": [], **judged},
    }
    if offered.needs or options:
        specification["calibration"] = calibration
    allocation = {**offered.axes, **options}.get("allocation", "uniform")
    sliced = options.get("rotation") == "per-layer"
    if granularity == "rank" or sliced or (not layers and allocation != "uniform"):
        specification["output"] = {"layout": "packaged"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").symlink_to(reference("models", "llama-5m"))
        for path in DATA.values():
            (folder / path).symlink_to(reference("data", "text", path))
        write_job(folder, "model", DATA, specification)
        outcome = pipeline.run(request(folder, folder / "work"), Recorder())
        report = json.loads(outcome.report.read_text())
    quality, cost = report["quality"], report["cost"]
    return {
        "validation": quality["pruned"]["perplexity"],
        "wikitext": quality["domain"]["pruned"]["perplexity"],
        "dense validation": quality["dense"]["perplexity"],
        "dense wikitext": quality["domain"]["dense"]["perplexity"],
        "parameters": cost["pruned"]["parameters"] / cost["dense"]["parameters"],
        "macs": cost["pruned"]["macs"] / cost["dense"]["macs"],
    }


def target(level: float) -> float:
    """The share of all parameters that is left without this share of the blocks' weights."""
    folder = reference("models", "llama-5m")
    found = inspect(read_config(folder), WeightReader(folder).names())
    return round(1 - level * found.prunable_parameters / found.parameters, 6)


def wanted(only: list[str], seeds: int) -> list[tuple[str, float, int]]:
    """All runs: everything once before anything twice, what has no chance in it once only."""
    kinds = {"neuron+head", "neuron", "hidden", "layer", "rank"}
    names = [recipe.name for recipe in recipes if kinds & set(recipe.granularities)] + list(EXTRA)
    return [
        (name, level, seed)
        for seed in range(seeds)
        for name in names
        for level in LEVELS
        if (not only or name in only)
        and (seed == 0 or name in EXTRA or recipes[name].needs or name.startswith("random"))
    ]


def report(results: dict[str, dict[str, float]]) -> str:
    """The tables in Markdown."""
    first = next(iter(results.values()))
    names = list(dict.fromkeys(key.split("|")[0] for key in results))
    parts = []
    for text in ("validation", "wikitext"):
        rows = []
        for name in names:
            row: list[Any] = [name]
            for level in LEVELS:
                found = [value[text] for key, value in results.items() if key.startswith(f"{name}|{level}|")]
                noise = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                row.append(f"{statistics.mean(found):.1f}{noise} ({len(found)})" if found else "")
            left = [value["parameters"] for key, value in results.items() if key.startswith(f"{name}|")]
            rows.append([*row, f"{max(left):.3f} to {min(left):.3f}"])
        title = f"## {text}: dense {first[f'dense {text}']:.1f}"
        parts.append(
            f"{title}\n\n" + table(["recipe", *(f"{level:.0%}" for level in LEVELS), "parameters left"], rows)
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "width_quality.json"
    results: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for name, level, seed in wanted(arguments.only, arguments.seeds):
        key = f"{name}|{level}|{seed}"
        if key in results:
            continue
        results[key] = run(name, level, seed)
        print(key, results[key], flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        text = (
            "# Quality of recipes of neurons, heads and layers\n\n`script/bench width_quality`\n\n"
            f"{machine()}\n\nllama-5m through whole jobs, the share of the blocks' parameters that goes in "
            "the columns (of whole layers the nearest number), no recovery; calibration on "
            f"{SAMPLES} sequences of {LENGTH} tokens of train.jsonl, perplexity over {EVALUATED} of the same "
            "length; mean ± standard deviation over seeds of calibration (number of seeds).\n\n"
            f"{report(results)}\n"
        )
        (RESULTS / "width_quality.md").write_text(text)


if __name__ == "__main__":
    main()
