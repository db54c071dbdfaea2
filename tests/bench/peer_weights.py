"""Wanda and SparseGPT against llm-compressor and ModelOpt: same model, same token rows, one run.

`tests/bench/peers/setup` first (environments of their own), then `script/bench peer_weights`. Quality is
compared on llama-5m; time and memory also on a random Llama-type model of 0.76 GB, since on a small one both
sides are little more than their interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.common import RESULTS, ROOT, reference, table, write

PEERS = Path(os.environ.get("SECATEUR_PEERS") or Path(tempfile.gettempdir()) / "secateur-peers")
NAMES = {"llm_compressor": "llm-compressor 0.14.0.1", "model_optimizer": "ModelOpt 0.47.0"}
ONCE = ", in one pass"
RUNS = [
    *(
        ("llm_compressor", method, pattern)
        for method in ("wanda", "sparsegpt")
        for pattern in ("50%", "70%", "2:4")
    ),
    ("model_optimizer", "sparsegpt", "2:4"),
    # ModelOpt looks at the dense model in one pass; by default we look at every block after those before it.
    ("model_optimizer", "sparsegpt", "2:4" + ONCE),
]
LARGE = [("llm_compressor", "wanda", "50%"), ("llm_compressor", "sparsegpt", "50%")]
LARGE_GIGABYTES, LARGE_SEQUENCES, LARGE_LENGTH = 0.75, 16, 128


def ours(method: str, pattern: str, folder: Path, rows_file: Path, out: Path, threads: int) -> dict[str, Any]:
    """The same by the engine: the model streams from disk, the pruned tensors go to `out`."""
    from safetensors.torch import load_file, save_file

    from compression.anatomy import inspect
    from compression.anatomy.budget import remove_count
    from compression.checkpoint import Store
    from compression.cutting import PruneSettings
    from compression.device import prepare_device
    from compression.evaluation import probe
    from compression.granularity.base import parse_granularity
    from compression.loading.streamed import StreamedModel, read_config
    from compression.loading.weights import WeightReader
    from compression.pruning import WeightPruner, finished_files
    from compression.recipes import recipes
    from tests.bench.streaming import Quiet

    prepare_device("cpu", threads)
    sequential, pattern = not pattern.endswith(ONCE), pattern.removesuffix(ONCE)
    rows = load_file(rows_file)["rows"]
    batches = [{"input_ids": part} for part in rows.split(8)]
    chosen = recipes[method].options().model_dump()
    chosen.pop("sequential")
    axes = {name: chosen.pop(name) for name in list(chosen) if name in PruneSettings.__dataclass_fields__}
    axes["update"] = tuple(axes["update"])
    sites = list(inspect(read_config(folder), WeightReader(folder).names()).sites)
    sparsity = 0.5 if ":" in pattern else float(pattern.rstrip("%")) / 100
    settings = PruneSettings(
        **axes,
        pattern=parse_granularity(pattern if ":" in pattern else "unstructured"),
        remove_total=remove_count(sparsity, sum(site.size for site in sites)),
        sequential=sequential,
        parameters=chosen,
    )
    StreamedModel(folder)  # the model's classes are imported before the clock starts, as for the peer
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        store = Store(Path(work), "peer")
        WeightPruner(lambda: StreamedModel(folder), sites, settings, batches, store, Quiet()).run()
        seconds, peak = time.monotonic() - begun, probe.memory_peak() / 1e6
        reader = WeightReader(folder, finished_files(store, 64))
        save_file({site.name: reader.tensor(site.name) for site in sites}, out)
    return {"seconds": seconds, "peak": peak}


def child(command: list[str], threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; its RESULT line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


class Sides:
    """One run of both sides, in turns, so that both meet the same machine."""

    def __init__(self, folder: Path, rows_file: Path, out: Path, threads: int, repeats: int) -> None:
        self.out, self.threads, self.repeats = out, threads, repeats
        self._given = [str(folder), str(rows_file), str(out), str(threads)]

    def compare(
        self, peer: str, method: str, pattern: str, quality: Callable[[], dict[str, float]]
    ) -> dict[str, dict[str, float]]:
        """Of each side the least seconds and peak, and the quality of what it left in `out`."""
        commands = {
            "peer": [str(PEERS / peer / "bin" / "python"), f"tests/bench/peers/{peer}.py"],
            "ours": [sys.executable, "-m", "tests.bench.peer_weights", "--child"],
        }
        found: dict[str, dict[str, float]] = {}
        for _ in range(self.repeats):
            for side, command in commands.items():
                wanted = pattern if side == "ours" else pattern.removesuffix(ONCE)
                result = child([*command, method, wanted, *self._given], self.threads)
                if side not in found:
                    found[side] = {**result, **quality()}
                for name in ("seconds", "peak"):
                    found[side][name] = min(found[side][name], result[name])
        return found


def costs(found: dict[str, dict[str, float]]) -> list[Any]:
    """Seconds and peak of both sides with their ratios."""
    cells: list[Any] = []
    for name in ("seconds", "peak"):
        ours_, peer = found["ours"][name], found["peer"][name]
        cells += [peer, ours_, ours_ / peer]
    return cells


def on_the_small_model(scratch: Path, threads: int, repeats: int) -> list[list[Any]]:
    """Rows with quality on both texts, and costs."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.bench.weight_quality import LENGTH, SAMPLES, Bench

    folder = reference("models", "llama-5m")
    bench = Bench(folder, threads)
    rows_file, out = scratch / "rows.safetensors", scratch / "out.safetensors"
    batches = bench.plan.calibration("calibration", SAMPLES, LENGTH, 0, 8).batches
    save_file({"rows": torch.cat([batch["input_ids"] for batch in batches])}, rows_file)

    def quality() -> dict[str, float]:
        bench.stock.load_state_dict({**bench.dense, **load_file(out)})
        return {name: bench.perplexity(text) for name, text in bench.texts.items()}

    sides, rows = Sides(folder, rows_file, out, threads, repeats), []
    for peer, method, pattern in RUNS:
        found = sides.compare(peer, method, pattern, quality)
        texts = [found[side][name] for name in ("validation", "wikitext") for side in ("peer", "ours")]
        rows.append([f"{method} {pattern}", NAMES[peer], *texts, texts[1] / texts[0], *costs(found)])
        print(rows[-1], flush=True)
    return rows


def on_the_large_model(scratch: Path, threads: int, repeats: int) -> list[list[Any]]:
    """Rows with costs alone: the weights are random."""
    import torch
    from safetensors.torch import save_file

    from tests.bench.streaming import VOCABULARY, build

    folder = scratch / "model"
    build(folder, LARGE_GIGABYTES)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the peer wants one, though it gets tokens
        shutil.copy(reference("models", "llama-5m", name), folder)
    rows_file, generator = scratch / "large.safetensors", torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (LARGE_SEQUENCES, LARGE_LENGTH), generator=generator)
    save_file({"rows": tokens}, rows_file)
    sides, rows = Sides(folder, rows_file, scratch / "large-out.safetensors", threads, repeats), []
    for peer, method, pattern in LARGE:
        found = sides.compare(peer, method, pattern, dict)
        rows.append([f"{method} {pattern}", NAMES[peer], *costs(found)])
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--half", choices=["small", "large"], help="take one table anew, keep the other")
    parser.add_argument("--child", nargs=6)
    arguments = parser.parse_args()
    if arguments.child:
        method, pattern, folder, rows, out, threads = arguments.child
        result = ours(method, pattern, Path(folder), Path(rows), Path(out), int(threads))
        print("RESULT " + json.dumps(result))
        return
    missing = [peer for peer in NAMES if not (PEERS / peer / "bin" / "python").exists()]
    if missing:
        sys.exit(f"this benchmark needs tests/bench/peers/setup to be run first ({', '.join(missing)})")
    from tests.bench.weight_quality import LENGTH, SAMPLES

    with tempfile.TemporaryDirectory() as scratch:
        # Each half is kept as soon as it is there, so that the other can be taken again.
        path = RESULTS / "peer_weights.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        for half, measured in (("small", on_the_small_model), ("large", on_the_large_model)):
            if arguments.half in (None, half):
                known[half] = measured(Path(scratch), arguments.threads, arguments.repeats)
                path.write_text(json.dumps(known, indent=1) + "\n")
    small, large = known.get("small", []), known.get("large", [])
    spent = ["seconds, peer", "ours", "ratio (limit 0.8)", "peak MB, peer", "ours", "ratio (limit 0.7)"]
    quality = ["validation, peer", "ours", "WikiText-2, peer", "ours", "validation, ratio"]
    text = (
        f"The same token rows for both sides; least of {arguments.repeats} runs in turns, each in a process "
        "of its own; seconds from the model's files to the pruned weights on disk (imports left out; ours "
        "are flushed); peak is the process's highest resident memory until the weights are pruned.\n\n"
        f"## llama-5m, {SAMPLES} x {LENGTH} tokens: perplexity and costs\n\n"
        + table(["run", "peer", *quality, *spent], small)
        + f"\n\n## A random model of {LARGE_GIGABYTES} GB in bfloat16, {LARGE_SEQUENCES} x {LARGE_LENGTH} "
        "tokens: costs\n\n" + table(["run", "peer", *spent], large)
    )
    write(
        "peer_weights",
        "Wanda and SparseGPT against llm-compressor and ModelOpt",
        "script/bench peer_weights",
        text,
    )


if __name__ == "__main__":
    main()
