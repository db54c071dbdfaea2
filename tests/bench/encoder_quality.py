"""MiniLM with half of its encoder's multiply-accumulates: accuracy and embeddings, without retraining.

`script/bench encoder_quality [--seeds 3] [--only RECIPE ...]`; a run that was broken off goes on where it
was. The classifier is MiniLM, trained here on sentence-polarity's train.jsonl (the same steps every time;
the last 500 rows are left out of training), and judged on its test.jsonl. The embeddings are those of MiniLM
as it comes: the cosine between the dense and the pruned model's on the same test sentences. Both are
calibrated on rows of train.jsonl. Latency: whole jobs measure it interleaved, dense and pruned.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from compression import pipeline
from compression.recipes import recipes
from tests.bench.common import RESULTS, machine, reference, table
from tests.bench.real_models import minilm
from tests.engine.jobs import Recorder, request, write_job

MACS, SAMPLES, LENGTH, EPOCHS, BATCH, RATE, LAYERS = 0.5, 128, 64, 2, 32, 5e-5, 3
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "flap + least-squares": ("flap", {"update": ["least-squares"]})
}


def classifier(base: Path, folder: Path) -> Path:
    """MiniLM trained to tell the two polarities apart."""
    torch.manual_seed(0)
    lines = reference("data", "sentence-polarity", "train.jsonl").read_text().splitlines()[:-500]
    rows = [json.loads(line) for line in lines]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    model.train()
    for step in range(steps):
        if step % (len(rows) // BATCH) == 0:
            order = torch.randperm(len(rows)).tolist()
        at = step % (len(rows) // BATCH) * BATCH
        chosen = [rows[number] for number in order[at : at + BATCH]]
        batch = tokenizer(
            [row["text"] for row in chosen],
            padding=True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        loss = model(**batch, labels=torch.tensor([int(row["label"]) for row in chosen])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    return folder


def run(model: Path, recipe: str, seed: int) -> dict[str, Any]:
    """One job on one of the two models."""
    name, options = EXTRA.get(recipe, (recipe, {}))
    layers = recipes[name].granularities == ("layer",)
    specification: dict[str, Any] = {
        "recipe": name,
        "target": {"layers": LAYERS} if layers else {"macs": MACS},
        "options": options,
        "seed": seed,
        "calibration": {"dataset": "dst_train", "samples": SAMPLES, "sequence_length": LENGTH, "seed": seed},
        "evaluation": {
            "dataset": "dst_test",
            "samples": 1000,
            "sequence_length": LENGTH,
            "measure": ["latency"] if seed == 0 else [],
        },
    }
    if not layers:
        specification["structure"] = {"granularity": "neuron"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").symlink_to(model)
        for part in ("train", "test"):
            (folder / f"{part}.jsonl").symlink_to(reference("data", "sentence-polarity", f"{part}.jsonl"))
        write_job(folder, "model", {"dst_train": "train.jsonl", "dst_test": "test.jsonl"}, specification)
        report = json.loads(pipeline.run(request(folder, folder / "work"), Recorder()).report.read_text())
    quality, cost = report["quality"], report["cost"]
    metric = "accuracy" if "accuracy" in quality["dense"] else "embedding_cosine"
    return {
        "dense": quality["dense"][metric],
        "pruned": quality["pruned"][metric],
        "macs": cost["pruned"]["macs"] / cost["dense"]["macs"],
        "latency": (report["latency"] or {}).get("ratio"),
    }


def report(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    rows = []
    for name in dict.fromkeys(key.split("|")[1] for key in results):
        row: list[Any] = [name]
        for kind in ("classifier", "embeddings"):
            found = [one["pruned"] for key, one in results.items() if key.startswith(f"{kind}|{name}|")]
            noise = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            row.append(f"{statistics.mean(found):.3f}{noise} ({len(found)})" if found else "")
        first = results.get(f"classifier|{name}|0", {})
        rows.append([*row, first.get("macs"), first.get("latency")])
    dense = next(one["dense"] for key, one in results.items() if key.startswith("classifier|"))
    headings = ["recipe", "accuracy", "embedding cosine", "MACs ratio", "latency ratio"]
    return f"Dense accuracy: {dense:.3f}.\n\n" + table(headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    path = RESULTS / "encoder_quality.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    names = [
        one.name
        for one in recipes
        if ("neuron" in one.granularities and one.axes.get("allocation") == "uniform")
        or one.granularities == ("layer",)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        base = minilm(Path(scratch))
        models = {"classifier": classifier(base, Path(scratch) / "classifier"), "embeddings": base}
        for seed in range(arguments.seeds):
            for name in [*names, *EXTRA]:
                for kind, model in models.items():
                    key = f"{kind}|{name}|{seed}"
                    loss = kind == "embeddings" and "loss" in recipes[EXTRA.get(name, (name,))[0]].needs
                    if key in results or loss or (arguments.only and name not in arguments.only):
                        continue
                    results[key] = run(model, name, seed)
                    print(key, results[key], flush=True)
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    text = (
                        "# Half of MiniLM's multiply-accumulates\n\n`script/bench encoder_quality`\n\n"
                        f"{machine()}\n\nMiniLM trained on sentence-polarity, accuracy on its 1,000 test "
                        "rows; MiniLM as it comes, cosine of its embeddings to the dense model's on the same "
                        "rows. Neurons go until half of the encoder's multiply-accumulates are left, or "
                        f"three of its six layers; no retraining; calibration on {SAMPLES} rows of "
                        "train.jsonl; mean ± standard deviation over seeds of calibration (number of seeds). "
                        "Latency: one job, batch 1, dense and pruned in turns.\n\n"
                        f"{report(results)}\n"
                    )
                    (RESULTS / "encoder_quality.md").write_text(text)


if __name__ == "__main__":
    main()
