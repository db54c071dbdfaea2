"""How much faster results are: prefill of an encoder and a decoder at half the MACs, decoding without layers.

`script/bench speed [--seconds S] [--threads N] [--trial]`. Random weights: speed does not depend on what
they are. Every result is made by the engine, and timed in turns with its dense model through stock
transformers. `--trial` prints and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression import pipeline
from compression.evaluation import stock
from compression.evaluation.turns import interleave, paired, summarise
from compression.standalone import resolve_alone
from tests.bench.common import reference, table, write
from tests.engine.jobs import Recorder
from tests.tiny_models import tiny_bert, tiny_llama

BATCHES = (1, 16)
NEW_TOKENS = 64
PROMPT_TOKENS = 32
TEXT = "\n\n".join(f"The {n} gardeners cut {n * 7} branches before noon, then counted." for n in range(400))


@dataclass(frozen=True)
class Model:
    """A dense model to be cut; `tokens` is the length that it is timed and counted at."""

    name: str
    folder: Path
    task: str
    tokens: int
    sizes: str


def models(scratch: Path) -> list[Model]:
    """An encoder of MiniLM's shape, a decoder whose layers are most of its work, and a small trained one."""
    encoder = tiny_bert(
        scratch / "encoder", layers=6, hidden=384, heads=12, ffn=1536, vocabulary=30522, context=512,
        scale=0.02
    )  # fmt: skip
    decoder = tiny_llama(
        scratch / "decoder", layers=8, hidden=512, heads=8, key_value_heads=8, ffn=1536, vocabulary=4096,
        context=512, scale=0.02,
    )  # fmt: skip
    return [
        Model(
            "encoder", encoder, "feature-extraction", 128, "6 layers, hidden 384, 12 heads, ffn 1536 (BERT)"
        ),
        Model("decoder", decoder, "text-generation", 256, "8 layers, hidden 512, 8 heads, ffn 1536 (Llama)"),
        Model(
            "llama-5m",
            reference("models", "llama-5m"),
            "text-generation",
            256,
            "6 layers, hidden 256, 8 heads of 4 groups, ffn 704 (Llama)",
        ),
    ]


def compress(model: Model, specification: dict[str, Any], scratch: Path, threads: int) -> pipeline.Outcome:
    """One job of the engine; nothing is measured in it."""
    datasets = {}
    if "calibration" in specification:
        text = scratch / "text.txt"
        text.write_text(TEXT)
        datasets["dst_text"] = text
    evaluation = {"measure": [], "sequence_length": model.tokens}
    asked = {"model": "mdl_bench", "evaluation": evaluation, **specification}
    resolved = resolve_alone(asked, model.folder, datasets)
    work = Path(tempfile.mkdtemp(dir=scratch))
    request = pipeline.Request(resolved, model.folder, datasets, work, threads=threads)
    return pipeline.run(request, Recorder())


def prefill(model: nn.Module, task: str, batch: int, tokens: int) -> Callable[[], None]:
    """One forward pass over full sequences."""
    words = torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}

    def call() -> None:
        with torch.inference_mode():
            stock.answer(model, inputs, task)

    return call


def decode(model: nn.Module, batch: int) -> Callable[[], None]:
    """New tokens one by one after a prompt, greedily, with the cache."""
    words = torch.randint(0, 256, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}

    def call() -> None:
        with torch.inference_mode():
            model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )

    return call


def timed(
    model: Model, artifact: Path, kind: str, batch: int, arguments: argparse.Namespace
) -> tuple[float, float, float, list[float], int]:
    """Seconds of the dense model and of the result, their paired ratio with its range, and rounds."""
    sides = [stock.load(folder, model.task) for folder in (model.folder, artifact)]
    calls = [
        prefill(side, model.task, batch, model.tokens) if kind == "prefill" else decode(side, batch)
        for side in sides
    ]
    dense, pruned = interleave(calls[0], calls[1], arguments.repeats, arguments.seconds)
    both = paired(dense, pruned)
    medians = [summarise(times, 1)["median"] for times in (dense, pruned)]
    return medians[0], medians[1], both["ratio"], both["ratio_range"], len(dense)


def half_the_macs(found: list[Model], scratch: Path, arguments: argparse.Namespace) -> str:
    """The table of prefill."""
    rows: list[list[Any]] = []
    for model in found:
        asked = {"recipe": "magnitude-width", "target": {"macs": 0.5}}
        outcome = compress(model, asked, scratch, arguments.threads)
        macs = outcome.summary["macs"]["ratio"]
        for batch in BATCHES:
            dense, pruned, ratio, span, rounds = timed(model, outcome.artifact, "prefill", batch, arguments)
            rows.append(
                [model.name, f"{batch} x {model.tokens}", macs, 1000 * dense, 1000 * pruned, ratio,
                 f"{span[0]:.3f} to {span[1]:.3f}", rounds]
            )  # fmt: skip
            print(rows[-1], flush=True)
    head = [
        "model",
        "batch x tokens",
        "MACs ratio",
        "dense ms",
        "result ms",
        "latency ratio",
        "95%",
        "rounds",
    ]
    return (
        "One forward pass at half the multiply-accumulates (`magnitude-width`, neurons and, where the "
        "class can have fewer, heads). The requirement is a latency ratio of at most 0.65.\n\n"
        + table(head, rows)
    )


def fewer_layers(found: list[Model], scratch: Path, arguments: argparse.Namespace) -> str:
    """The table of decoding."""
    rows: list[list[Any]] = []
    for model in found:
        if model.task != "text-generation":
            continue
        asked = {
            "recipe": "layer-drop",
            "target": {"sparsity": 0.25},
            "calibration": {"dataset": "dst_text", "samples": 4, "sequence_length": 64},
        }
        outcome = compress(model, asked, scratch, arguments.threads)
        for batch in BATCHES:
            dense, pruned, ratio, span, rounds = timed(model, outcome.artifact, "decode", batch, arguments)
            tokens = batch * NEW_TOKENS
            rows.append(
                [model.name, outcome.summary["parameters"]["ratio"], batch, tokens / dense, tokens / pruned,
                 1 / ratio, f"{1 / span[1]:.3f} to {1 / span[0]:.3f}", rounds]
            )  # fmt: skip
            print(rows[-1], flush=True)
    head = ["model", "parameters ratio", "batch", "dense tokens/s", "result tokens/s", "times as fast", "95%",
            "rounds"]  # fmt: skip
    return (
        f"{NEW_TOKENS} new tokens one by one after a prompt of {PROMPT_TOKENS}, a quarter of the layers gone "
        "(`layer-drop`; of 6 layers 2, which is a third). The requirement is 1.25 times as many tokens a "
        "second.\n\n" + table(head, rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one row, about")
    parser.add_argument("--repeats", type=int, default=200, help="rounds of one row at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trial", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        scratch = Path(folder)
        found = models(scratch)
        blocks = [half_the_macs(found, scratch, arguments), fewer_layers(found, scratch, arguments)]
    sizes = "\n".join(f"- {model.name}: {model.sizes}" for model in found)
    how = (
        f"float32, {arguments.threads} threads, stock transformers; dense and result in turns in one "
        f"process, medians, and ratios of the same round.\n\n{sizes}"
    )
    if arguments.trial:
        print("\n\n".join([how, *blocks]))
    else:
        write("speed", "Speed of results", "script/bench speed", how, *blocks)


if __name__ == "__main__":
    main()
