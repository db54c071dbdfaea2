"""What D-Pruner keeps of a domain and of everything else, beside criteria that see one of the two.

`script/bench domain_quality [--seeds 3]`. The general text is train.jsonl without its radio news, the domain
is the radio news; the figures are perplexities on both parts of validation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from compression.anatomy.budget import remove_count
from compression.checkpoint import Store
from compression.cutting import PruneSettings
from compression.granularity.base import parse_granularity
from compression.loading.data import DataPlan
from compression.loading.streamed import StreamedModel, read_config
from compression.pruning import WeightPruner, finished_files
from compression.recipes import recipes
from tests.bench.common import reference, table, write
from tests.bench.weight_quality import LENGTH, SAMPLES, Bench, Quiet

DOMAIN = "news"
LEVELS = (0.5, 0.6, 0.7)
# Name in the table: recipe, options, which text calibrates, which is the domain's.
RUNS: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "wanda, general": ("wanda", {}, "general", None),
    "wanda, domain": ("wanda", {}, "domain", None),
    "fisher, general": ("magnitude", {"criterion": "fisher"}, "general", None),
    "fisher, domain": ("magnitude", {"criterion": "fisher"}, "domain", None),
    "d-pruner, lambda 0.1": ("d-pruner", {"d_pruner_lambda": 0.1}, "general", "domain"),
    "d-pruner": ("d-pruner", {}, "general", "domain"),
    "d-pruner with first order": ("d-pruner", {"d_pruner_first_order": True}, "general", "domain"),
    "d-pruner, lambda 10": ("d-pruner", {"d_pruner_lambda": 10.0}, "general", "domain"),
}


def split(name: str, folder: Path) -> dict[str, Path]:
    """The rows of a file of the reference data by domain."""
    paths = {part: folder / f"{name}-{part}.jsonl" for part in ("general", "domain")}
    lines: dict[str, list[str]] = {part: [] for part in paths}
    for line in reference("data", "text", f"{name}.jsonl").read_text().splitlines():
        lines["domain" if json.loads(line)["source"] == DOMAIN else "general"].append(line)
    for part, path in paths.items():
        path.write_text("\n".join(lines[part]) + "\n")
    return paths


def run(bench: Bench, plan: DataPlan, name: str, sparsity: float, seed: int) -> dict[str, float]:
    """One pruning run: perplexities on both kinds of text, seconds."""
    recipe, options, general, domain = RUNS[name]
    chosen = {**recipes[recipe].options().model_dump(), **options}
    axes = {key: chosen.pop(key) for key in list(chosen) if key in PruneSettings.__dataclass_fields__}
    axes["update"] = tuple(axes["update"])
    settings = PruneSettings(
        **axes,
        pattern=parse_granularity("unstructured"),
        remove_total=remove_count(sparsity, sum(site.size for site in bench.sites)),
        seed=seed,
        parameters=chosen,
    )
    batches = plan.calibration(general, SAMPLES, LENGTH, seed, 8).batches
    own = plan.calibration(domain, SAMPLES, LENGTH, seed, 8).batches if domain else None
    with tempfile.TemporaryDirectory() as work:
        store = Store(Path(work), "bench")
        begun = time.monotonic()
        pruner = WeightPruner(
            lambda: StreamedModel(bench.folder), bench.sites, settings, batches, store, Quiet(), domain=own
        )
        pruner.run()
        seconds = time.monotonic() - begun
        return {**bench.judge(finished_files(store, 64)), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    bench = Bench(reference("models", "llama-5m"), arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = split("train", folder) | {
            f"judge-{part}": path for part, path in split("validation", folder).items()
        }
        plan = DataPlan(bench.folder, read_config(bench.folder), "text-generation", files)
        bench.texts = {
            part: plan.evaluation(f"judge-{part}", 64, LENGTH).batches for part in ("general", "domain")
        }
        dense = {part: bench.perplexity(batches) for part, batches in bench.texts.items()}
        rows = []
        for name in RUNS:
            row: list[Any] = [name]
            for sparsity in LEVELS:
                found = [run(bench, plan, name, sparsity, seed) for seed in range(arguments.seeds)]
                for part in bench.texts:
                    values = [one[part] for one in found]
                    noise = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                    row.append(f"{statistics.mean(values):.2f}{noise}")
            rows.append(row)
            print(row, flush=True)
    head = ["criterion, calibration", *(f"{level:.0%}, {part}" for level in LEVELS for part in bench.texts)]
    text = (
        f"llama-5m, {SAMPLES} sequences of {LENGTH} tokens of each text, uniform allocation; perplexity over "
        "up to 64 sequences of each kind of validation.jsonl; mean ± standard deviation over "
        f"{arguments.seeds} seeds of calibration. Dense: general {dense['general']:.2f}, domain "
        f"{dense['domain']:.2f}.\n\n" + table(head, rows)
    )
    write("domain_quality", "A domain beside general text", "script/bench domain_quality", text)


if __name__ == "__main__":
    main()
