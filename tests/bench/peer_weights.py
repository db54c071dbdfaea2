"""Wanda and SparseGPT against llm-compressor: same model, same token rows, one run.

`tests/bench/peers/setup` first (an environment of its own), then `script/bench peer_weights`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.common import ROOT, reference, table, write

PEER = Path(__file__).parent / "peers" / ".venv" / "bin" / "python"
RUNS = [(method, pattern) for method in ("wanda", "sparsegpt") for pattern in ("50%", "70%", "2:4")]


def ours(method: str, pattern: str, folder: Path, rows_file: Path, out: Path, threads: int) -> dict[str, Any]:
    """The same by the engine: the model streams from disk, the pruned tensors go to `out`."""
    from safetensors.torch import load_file, save_file

    from compression.anatomy import inspect
    from compression.anatomy.budget import remove_count
    from compression.checkpoint import Store
    from compression.cutting import PruneSettings
    from compression.device import prepare_device
    from compression.granularity.base import parse_granularity
    from compression.loading.streamed import StreamedModel, read_config
    from compression.loading.weights import WeightReader
    from compression.pruning import WeightPruner, finished_files
    from compression.recipes import recipes
    from tests.bench.streaming import Quiet

    prepare_device("cpu", threads)
    rows = load_file(rows_file)["rows"]
    batches = [{"input_ids": part} for part in rows.split(8)]
    chosen = recipes[method].options().model_dump()
    axes = {name: chosen.pop(name) for name in list(chosen) if name in PruneSettings.__dataclass_fields__}
    axes["update"] = tuple(axes["update"])
    sites = list(inspect(read_config(folder), WeightReader(folder).names()).sites)
    sparsity = 0.5 if ":" in pattern else float(pattern.rstrip("%")) / 100
    settings = PruneSettings(
        **axes,
        pattern=parse_granularity(pattern if ":" in pattern else "unstructured"),
        remove_total=remove_count(sparsity, sum(site.size for site in sites)),
        parameters=chosen,
    )
    StreamedModel(folder)  # the model's classes are imported before the clock starts, as for the peer
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        store = Store(Path(work), "peer")
        WeightPruner(lambda: StreamedModel(folder), sites, settings, batches, store, Quiet()).run()
        seconds = time.monotonic() - begun
        reader = WeightReader(folder, finished_files(store, 64))
        save_file({site.name: reader.tensor(site.name) for site in sites}, out)
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def child(command: list[str], threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; its RESULT line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", nargs=6)
    arguments = parser.parse_args()
    if arguments.child:
        method, pattern, folder, rows, out, threads = arguments.child
        result = ours(method, pattern, Path(folder), Path(rows), Path(out), int(threads))
        print("RESULT " + json.dumps(result))
        return
    if not PEER.exists():
        sys.exit("this benchmark needs tests/bench/peers/setup to be run first")
    from safetensors.torch import load_file, save_file

    from tests.bench.weight_quality import LENGTH, SAMPLES, Bench

    folder = reference("models", "llama-5m")
    bench = Bench(folder, arguments.threads)
    table_rows = []
    with tempfile.TemporaryDirectory() as scratch:
        import torch

        rows_file, out = Path(scratch) / "rows.safetensors", Path(scratch) / "out.safetensors"
        batches = bench.plan.calibration("calibration", SAMPLES, LENGTH, 0, 8).batches
        save_file({"rows": torch.cat([batch["input_ids"] for batch in batches])}, rows_file)
        for method, pattern in RUNS:
            found: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
            given = [method, pattern, str(folder), str(rows_file), str(out), str(arguments.threads)]
            for _ in range(arguments.repeats):  # in turns, so that both meet the same machine
                for side in found:
                    peer = [str(PEER), "tests/bench/peers/llm_compressor.py"]
                    own = [sys.executable, "-m", "tests.bench.peer_weights", "--child"]
                    result = child([*(peer if side == "peer" else own), *given], arguments.threads)
                    if not found[side]:
                        bench.stock.load_state_dict({**bench.dense, **load_file(out)})
                        result |= {name: bench.perplexity(text) for name, text in bench.texts.items()}
                    found[side].append(result)
            seconds = {side: min(run["seconds"] for run in runs) for side, runs in found.items()}
            peak = {side: min(run["peak"] for run in runs) for side, runs in found.items()}
            table_rows.append(
                [
                    f"{method} {pattern}",
                    found["peer"][0]["validation"],
                    found["ours"][0]["validation"],
                    found["ours"][0]["validation"] / found["peer"][0]["validation"],
                    found["peer"][0]["wikitext"],
                    found["ours"][0]["wikitext"],
                    seconds["ours"] / seconds["peer"],
                    peak["ours"] / peak["peer"],
                ]
            )
            print(table_rows[-1], flush=True)
    head = [
        "run",
        "peer, validation",
        "ours",
        "ratio",
        "peer, WikiText-2",
        "ours",
        "time, ours / peer",
        "memory, ours / peer",
    ]
    text = (
        f"llama-5m, {SAMPLES} x {LENGTH} calibration tokens, the same for both; llm-compressor 0.14.0.1 in "
        f"its own environment with targets re:.*proj$; least of {arguments.repeats} runs in turns, each in a "
        "process of its own; time is that of pruning, memory the process's highest resident size.\n\n"
        + table(head, table_rows)
    )
    write("peer_weights", "Wanda and SparseGPT against llm-compressor", "script/bench peer_weights", text)


if __name__ == "__main__":
    main()
