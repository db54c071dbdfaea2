"""Structured pruning against Torch-Pruning: the same model, the same rows of calibration, as many parameters.

`tests/bench/peers/setup` first (an environment of its own), then `script/bench peer_structured
[--only encoder|heads|grouped]`; a run that was broken off goes on where it was. Three parts: the classifier
of `polarity.py` at half of its encoder's multiply-accumulates; llama-5m with its key and value heads repeated
to one for every query head (the same function, which the peer can read) at 20 and 50% of the parameters of
its blocks; llama-5m as it is, grouped-query. No retraining.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compression.anatomy import inspect
from compression.loading.data import DataPlan
from compression.loading.streamed import read_config
from compression.loading.weights import WeightReader
from tests.bench.common import RESULTS, machine, reference, table
from tests.bench.peer_sides import PEER, SAMPLES, Ours, Part, Peer
from tests.bench.peer_weights import PEERS
from tests.bench.polarity import LENGTH as WORDS
from tests.bench.polarity import Bench, Judge, prepared

NAME = "Torch-Pruning 1.6.1"
LENGTH, EVALUATED = 256, 64
LEVELS = (0.2, 0.5)
CPU_SECONDS = 120
"""Of processor time, after which a run of the peer is stopped."""


def encoder(bench: Bench, threads: int) -> tuple[Part, Callable[[nn.Module], float]]:
    """The classifier, judged by its accuracy on the test rows."""
    config = read_config(bench.classifier)
    plan = DataPlan(bench.classifier, config, "text-classification", {"train": bench.data["train"]})
    batches = plan.calibration("train", SAMPLES, WORDS, 0, SAMPLES).batches
    texts = bench.data["train"], bench.data["validation"]
    part = Part(bench.classifier, dict(batches[0]), texts, WORDS, threads)
    judged = Judge(bench.classifier, bench.data["test"])
    return part, lambda model: judged(model)["accuracy"]


def decoder(folder: Path, threads: int) -> tuple[Part, Callable[[nn.Module], float]]:
    """A language model, judged by its perplexity on validation.jsonl."""
    texts = reference("data", "text", "train.jsonl"), reference("data", "text", "validation.jsonl")
    plan = DataPlan(
        folder, read_config(folder), "text-generation", dict(zip(("train", "judge"), texts, strict=True))
    )
    batches = plan.calibration("train", SAMPLES, LENGTH, 0, SAMPLES).batches
    judged = plan.evaluation("judge", EVALUATED, LENGTH).batches

    def perplexity(model: nn.Module) -> float:
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in judged:
                tokens = batch["input_ids"]
                logits = model(tokens, use_cache=False).logits[:, :-1]
                total += float(
                    nn.functional.cross_entropy(
                        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
                    )
                )
                count += tokens[:, 1:].numel()
        return math.exp(total / count)

    return Part(folder, dict(batches[0]), texts, LENGTH, threads), perplexity


def with_all_heads(folder: Path, to: Path) -> Path:
    """A Llama model of grouped-query attention with its key and value heads repeated: the same function, a
    key and a value head for every query head."""
    config = json.loads((folder / "config.json").read_text())
    times = config["num_attention_heads"] // config["num_key_value_heads"]
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            by_head = tensor.unflatten(0, (config["num_key_value_heads"], config["head_dim"]))
            tensors[name] = by_head.repeat_interleave(times, 0).flatten(0, 1).contiguous()
    to.mkdir()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    config["num_key_value_heads"] = config["num_attention_heads"]
    (to / "config.json").write_text(json.dumps(config))
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "generation")):
            (to / path.name).symlink_to(path)
    return to


OURS = ("magnitude-width", "llm-pruner", "flap", "fisher-heads", "ziplm")
FIRST = (
    "taylor, heads and neurons",
    "k-prune",
    "magnitude, heads and neurons",
    "magnitude-width",
    "llm-pruner",
    "flap",
)
"""What is taken before the rest."""
WIDEST = 344
"""Neurons that a layer of MiniLM keeps at half of the multiply-accumulates, in multiples of eight."""


def encoder_runs() -> dict[str, Peer | Ours]:
    """Runs on the classifier: neurons alone, as a stock BERT can hold; heads too; the hidden width too, as in
    the peer's example for BERT."""
    found: dict[str, Peer | Ours] = {}
    for one in ("magnitude", "taylor"):
        found[f"{one}, neurons"] = Peer(one, "neurons", neurons=1536 - WIDEST)
        found[f"{one}, neurons, layers compete"] = replace(found[f"{one}, neurons"], everywhere=True)
        found[f"{one}, heads and neurons"] = Peer(one, "heads+neurons", heads=6, neurons=768)
        found[f"{one}, heads, neurons, hidden width"] = Peer(one, "heads+neurons+hidden", ratio=0.29)
    for recipe in OURS:
        found[recipe] = Ours(recipe, {}, "neuron", {"macs": 0.5})
    found["k-prune, one width"] = Ours("k-prune", {"allocation": "uniform"}, "neuron", {"macs": 0.5})
    return found


def decoder_runs(folder: Path, level: float) -> dict[str, Peer | Ours]:
    """Runs on a language model without this share of its blocks' parameters."""
    found = inspect(read_config(folder), WeightReader(folder).names())
    target = {"parameters": round(1 - level * found.prunable_parameters / found.parameters, 6)}
    goes = level * found.prunable_parameters / found.layers
    neuron = 3 * found.hidden
    head = found.prunable_parameters // found.layers - neuron * found.ffn
    heads = math.ceil(level * found.heads)
    left = goes - heads * head / found.heads
    runs: dict[str, Peer | Ours] = {}
    for one in ("magnitude", "taylor"):
        both = Peer(one, "heads+neurons", heads=heads, neurons=math.ceil(left / neuron))
        runs[f"{one}, heads and neurons"] = both
        runs[f"{one}, heads and neurons, layers compete"] = replace(both, everywhere=True)
        if goes / neuron < found.ffn / 2:
            runs[f"{one}, neurons"] = Peer(one, "neurons", neurons=math.ceil(goes / neuron))
    for recipe in OURS:
        runs[recipe] = Ours(recipe, {}, "neuron+head", target)
    runs["k-prune"] = Ours("k-prune", {}, "neuron+head", target, "packaged")
    return runs


def label(name: str, run: Peer | Ours) -> str:
    """A line's name, with the side it is of."""
    return f"{NAME}: {name}" if isinstance(run, Peer) else name


def lines(results: dict[str, Any], part: str) -> list[list[Any]]:
    """Lines of the table of one part."""
    found = []
    for key, one in results.items():
        if key.startswith(f"{part}|") and not key.endswith("|dense"):
            figures = [one.get(name) for name in ("quality", "parameters", "macs", "seconds", "peak")]
            found.append([key.split("|")[1], *figures])
    return found


def report(results: dict[str, Any], threads: int) -> str:
    """The whole page in Markdown."""
    costs = ["parameters", "MACs", "seconds", "peak MB"]
    parts = [
        f"# Structured pruning against {NAME}\n\n`script/bench peer_structured`\n\n{machine()}, {threads} "
        f"thread(s)\n\nThe same {SAMPLES} rows of calibration for both sides, nothing retrained, one run "
        "each in a process of its own. Parameters and multiply-accumulates (torch's counter, one row) are "
        "shares of the dense model's. Seconds: the peer's from the model's files to the pruned tensors on "
        "disk; ours of the whole job (load, inspect, calibrate, prune, export) without evaluating and "
        "verifying; both were taken beside other work on the machine, and peak memory is the process's "
        "highest (ours includes evaluating 8 rows)."
    ]
    titles = {
        "encoder": "## MiniLM classifier, half of the multiply-accumulates: accuracy (dense {:.3f})",
        "heads 20%": "## llama-5m with repeated key and value heads, 20% of the blocks: perplexity "
        "(dense {:.2f})",
        "heads 50%": "## The same, 50% of the blocks (dense {:.2f})",
        "grouped": "## llama-5m as it is (grouped-query), 50% of the blocks: perplexity (dense {:.2f})",
    }
    for part, title in titles.items():
        rows = lines(results, part)
        if rows:
            quality = "accuracy" if part == "encoder" else "perplexity"
            parts.append(title.format(results[f"{part}|dense"]["quality"]))
            parts.append(table(["run", quality, *costs], rows))
    parts += [one["said"] for one in results.values() if "said" in one]
    return "\n\n".join(parts) + "\n"


def said(name: str, one: dict[str, Any]) -> str:
    """What happened to a run of the peer that did not end."""
    told = [line.strip() for line in one["errors"].splitlines() if line.strip()]
    inner = [line for line in told if "site-packages/torch_pruning" in line and "line" in line]
    # A traceback of an error has the last call at its end, one of a stopped process at its beginning.
    stopped = one["failed"] == -signal.SIGXCPU
    place = (
        inner[0 if stopped else -1].split("site-packages/")[-1].replace('"', "") if inner else "its script"
    )
    if stopped:
        return f"{name}: not at its end after {CPU_SECONDS} seconds of processor time; it was in {place}."
    return f"{name}: ended in an error, {told[-1] if told else one['failed']} ({place})."


class Bookkeeper:
    """Results on disk, taken once."""

    def __init__(self, threads: int) -> None:
        self._path, self._threads = RESULTS / "peer_structured.json", threads
        self.results = self._read()

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return found

    def take(
        self, side: Part, judge: Callable[[nn.Module], float], runs: list[tuple[str, str, Peer | Ours]]
    ) -> None:
        """Of runs (part, name, what to do) on one model, do what is not there yet."""
        for part, name, run in runs:
            if f"{part}|dense" not in self.results:
                self.results[f"{part}|dense"] = {"quality": judge(side.dense.eval())}
            key = f"{part}|{label(name, run)}"
            if key in self.results:
                continue
            found = side(run, judge, CPU_SECONDS)
            print(key, found, flush=True)
            # Read anew: parts may be taken by several runs at a time.
            self.results |= self._read() | {
                key: {"said": said(key.replace("|", ", "), found)} if "failed" in found else found
            }
            self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self.results, indent=1) + "\n")
        (RESULTS / "peer_structured.md").write_text(report(self.results, self._threads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["encoder", "heads", "grouped"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not (PEERS / PEER / "bin" / "python").exists():
        sys.exit("this benchmark needs tests/bench/peers/setup to be run first")
    book, threads = Bookkeeper(arguments.threads), arguments.threads
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.only in (None, "grouped"):
            folder = reference("models", "llama-5m")
            runs = decoder_runs(folder, 0.5)
            chosen = ("magnitude-width", "k-prune", "magnitude, heads and neurons")
            book.take(*decoder(folder, threads), [("grouped", name, runs[name]) for name in chosen])
        if arguments.only in (None, "encoder"):
            every = [("encoder", name, run) for name, run in encoder_runs().items()]
            every.sort(key=lambda one: (*FIRST, one[1]).index(one[1]))
            book.take(*encoder(prepared(), threads), every)
        if arguments.only in (None, "heads"):
            folder = with_all_heads(reference("models", "llama-5m"), Path(scratch) / "heads")
            by_level = {f"heads {level:.0%}": decoder_runs(folder, level) for level in LEVELS}
            every = [(part, name, run) for part, runs in by_level.items() for name, run in runs.items()]
            every.sort(key=lambda one: (*FIRST, one[1]).index(one[1]))
            book.take(*decoder(folder, threads), every)


if __name__ == "__main__":
    main()
