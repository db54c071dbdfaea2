"""Perplexity of every recipe of single weights on llama-5m at several sparsities, over seeds of calibration.

`script/bench weight_quality [--seeds 5] [--only RECIPE ...]`; a run that was broken off goes on where it was.
Calibration comes from train.jsonl, the figures from WikiText-2 (validation) and validation.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compression.anatomy import inspect
from compression.anatomy.budget import remove_count
from compression.checkpoint import Store
from compression.cutting import PruneSettings
from compression.granularity.base import parse_granularity
from compression.loading.data import DataPlan
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.pruning import WeightPruner, finished_files
from compression.recipes import recipes
from tests.bench.common import RESULTS, machine, reference, table

PATTERNS = ("50%", "60%", "70%", "2:4", "4:8")
SAMPLES, LENGTH, EVALUATED = 128, 256, 64
# Compositions that no recipe stands for, to show what the axes give together.
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient": ("magnitude", {"criterion": "gradient"}),
    "fisher": ("magnitude", {"criterion": "fisher"}),
    "movement": ("magnitude", {"criterion": "movement"}),
    "wanda + combinatorial": ("wanda", {"update": ["combinatorial"]}),
    "sparsegpt + owl": ("sparsegpt", {"allocation": "owl"}),
    "sparsegpt + RSQ attention": ("sparsegpt", {"token_weight": "attention"}),
    "alps + distortion-dp": ("alps", {"allocation": "distortion-dp"}),
}


class Bench:
    """The model, its data and the dense figures."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.folder = folder
        self.sites = list(inspect(read_config(folder), WeightReader(folder).names()).sites)
        files = {
            "calibration": reference("data", "text", "train.jsonl"),
            "validation": reference("data", "text", "validation.jsonl"),
            "wikitext": reference("data", "text", "wikitext-2-validation.txt"),
        }
        self.plan = DataPlan(folder, read_config(folder), "text-generation", files)
        self.stock = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.dense = {name: value.clone() for name, value in self.stock.state_dict().items()}
        self.texts = {
            name: self.plan.evaluation(name, EVALUATED, LENGTH).batches for name in ("wikitext", "validation")
        }

    def perplexity(self, batches: Sequence[dict[str, Tensor]]) -> float:
        """exp of the mean next-token cross entropy of the stock model as it is now."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in batches:
                tokens = batch["input_ids"]
                logits = self.stock(tokens, use_cache=False).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(
                    logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="sum"
                )
                total, count = total + float(loss), count + tokens[:, 1:].numel()
        return math.exp(total / count)

    def judge(self, files: Sequence[Path]) -> dict[str, float]:
        """Perplexities with the tensors of these files laid over the dense ones."""
        reader = WeightReader(self.folder, list(files))
        changed = {site.name: reader.tensor(site.name) for site in self.sites}
        self.stock.load_state_dict({**self.dense, **changed})
        return {name: self.perplexity(batches) for name, batches in self.texts.items()}

    def run(self, recipe: str, options: dict[str, Any], pattern: str, seed: int) -> dict[str, Any]:
        """One pruning run: perplexities, seconds, hash of the pruned weights."""
        chosen = {**recipes[recipe].options().model_dump(), **options}
        axes = {name: chosen.pop(name) for name in list(chosen) if name in PruneSettings.__dataclass_fields__}
        axes["update"] = tuple(axes["update"])
        sparsity = float(pattern.rstrip("%")) / 100 if pattern.endswith("%") else 0.5
        settings = PruneSettings(
            **axes,
            pattern=parse_granularity("unstructured" if pattern.endswith("%") else pattern),
            remove_total=remove_count(sparsity, sum(site.size for site in self.sites)),
            seed=seed,
            parameters=chosen,
        )
        needed = recipes[recipe].needs or options
        calibration = self.plan.calibration("calibration", SAMPLES, LENGTH, seed, 8) if needed else None
        with tempfile.TemporaryDirectory() as work:
            store = Store(Path(work), "bench")
            begun = time.monotonic()
            pruner = WeightPruner(
                lambda: StreamedModel(self.folder),
                self.sites,
                settings,
                calibration.batches if calibration is not None else None,
                store,
                Quiet(),
            )
            facts = pruner.run()
            seconds = time.monotonic() - begun
            files = finished_files(store, 64)
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
            zeros = sum(fact["zeros"] for fact in facts) / sum(site.size for site in self.sites)
            return {**self.judge(files), "seconds": seconds, "zeros": zeros, "sha256": digest}


class Quiet:
    """Nobody listens."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...


def wanted(only: Sequence[str], seeds: int) -> list[tuple[str, str, int]]:
    """(name, pattern, seed) of all runs: everything once before anything twice."""
    # There is one kind of text here, so what weighs two kinds has no place in the table.
    single = [recipe for recipe in recipes if "criterion" in recipe.options.model_fields]
    names = [recipe.name for recipe in single if "domain" not in recipe.needs] + list(EXTRA)
    runs = []
    for seed in range(seeds):
        for name in names:
            recipe, options = EXTRA.get(name, (name, {}))
            offered = recipes[recipe].granularities if "allocation" not in options else ("unstructured",)
            repeated = seed > 0 and not recipes[recipe].needs and not options and name != "random"
            for pattern in PATTERNS:
                kind = "unstructured" if pattern.endswith("%") else "n:m"
                if (not only or name in only) and kind in offered and not repeated:
                    runs.append((name, pattern, seed))
    return runs


def report(results: dict[str, dict[str, Any]], dense: dict[str, float]) -> str:
    """The tables in Markdown."""
    names = list(dict.fromkeys(key.split("|")[0] for key in results))
    parts = [f"Dense: WikiText-2 {dense['wikitext']:.2f}, validation {dense['validation']:.2f}."]
    for text in ("wikitext", "validation"):
        rows = []
        for name in names:
            row: list[Any] = [name]
            for pattern in PATTERNS:
                found = [value for key, value in results.items() if key.startswith(f"{name}|{pattern}|")]
                values = [value[text] for value in found]
                if not values:
                    row.append("")
                    continue
                noise = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                row.append(f"{statistics.mean(values):.2f}{noise} ({len(values)})")
            seconds = [value["seconds"] for key, value in results.items() if key.startswith(f"{name}|")]
            rows.append([*row, f"{min(seconds):.1f}"])
        title = {"wikitext": "WikiText-2 (validation split)", "validation": "validation.jsonl"}[text]
        parts.append(f"## {title}\n\n" + table(["recipe", *PATTERNS, "seconds"], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    bench = Bench(reference("models", "llama-5m"), arguments.threads)
    path = RESULTS / "weight_quality.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    bench.stock.load_state_dict(bench.dense)
    dense = {name: bench.perplexity(batches) for name, batches in bench.texts.items()}
    for name, pattern, seed in wanted(arguments.only, arguments.seeds):
        key = f"{name}|{pattern}|{seed}"
        if key not in results:
            recipe, options = EXTRA.get(name, (name, {}))
            results[key] = bench.run(recipe, options, pattern, seed)
            print(key, {k: v for k, v in results[key].items() if k != "sha256"}, flush=True)
            path.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n")
            text = (
                "# Quality of recipes of single weights\n\n`script/bench weight_quality`\n\n"
                f"{machine()}\n\nllama-5m, calibration on {SAMPLES} sequences of {LENGTH} tokens of "
                f"train.jsonl, perplexity over {EVALUATED} sequences of {LENGTH} tokens; mean ± standard "
                "deviation over the seeds of the calibration sample (number of seeds); seconds: the least of a "
                "row's runs, of pruning alone (some on one thread beside other work).\n\n"
                f"{report(results, dense)}\n"
            )
            (RESULTS / "weight_quality.md").write_text(text)


if __name__ == "__main__":
    main()
