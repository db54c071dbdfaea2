"""Speed and peak memory, measured: dense and pruned side by side in one fresh process.

``python -m compression.evaluation.measure REQUEST.json`` loads the dense model, runs the fixed inputs and
notes its peak memory; for latency it then loads the pruned model too and times both in turns, so that
whatever else the machine does falls on both. The pruned model's peak memory is that of the verification
process, which runs the same inputs the same way with nothing else in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression.anatomy import inspect
from compression.anatomy.latency import DECODER_TOKENS, ENCODER_TOKENS
from compression.errors import CompressionError
from compression.evaluation import probe, stock
from compression.evaluation.turns import interleave, paired, summarise
from compression.evaluation.types import GENERATION, TEXT_TO_TEXT, Batch
from compression.loading.config import rewrite_config
from compression.loading.sources import PathSource

PROMPT_TOKENS = 32
NEW_TOKENS = 16
FORWARD_TOKENS = {GENERATION: DECODER_TOKENS}
BATCH = 8


class MeasurementFailed(CompressionError):
    """The measuring process ended badly; the message has the end of what it said."""

    code = "measurement_failed"


def measure(
    dense: Path,
    pruned: Path,
    *,
    work: Path,
    inputs: Path,
    measure: Sequence[str],
    threads: int = 1,
    device: str = "cpu",
    repeats: int = 20,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """Measure two stock-loadable folders on the inputs of ``probe.write_inputs``.

    At most ``repeats`` rounds and about ``seconds`` seconds a case, at least five rounds. With an empty
    ``measure`` nothing is started. Returns ``{"latency": {...} | None, "memory": {...} | None}``; the
    memory of the pruned model is added by ``with_pruned_memory``. Raises MeasurementFailed.
    """
    if not measure:
        return {"latency": None, "memory": None}
    request = {
        "dense": str(dense),
        "pruned": str(pruned),
        "inputs": str(inputs),
        "measure": list(measure),
        "threads": threads,
        "device": device,
        "repeats": repeats,
        "seconds": seconds,
    }
    work.mkdir(parents=True, exist_ok=True)
    path = work / "measure.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    try:
        return probe.child("compression.evaluation.measure", [str(path)], threads=threads)
    except probe.ChildFailed as error:
        raise MeasurementFailed(f"measuring failed: {error.detail}") from None


def with_pruned_memory(measured: dict[str, Any], verified: dict[str, Any]) -> dict[str, Any]:
    """``measured`` with the pruned model's peak memory, as the verification process found it."""
    memory = measured.get("memory")
    if memory is None:
        return measured
    pruned = verified["memory"]
    figure = "device_bytes" if pruned["device_bytes"] is not None else "model_bytes"
    ratio = pruned[figure] / memory["dense"][figure] if memory["dense"][figure] else None
    return measured | {"memory": memory | {"pruned": pruned, "figure": figure, "ratio": ratio}}


def _forward(model: nn.Module, batch: Batch, task: str, device: str) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            stock.answer(model, batch, task)
            _wait(device)

    return call


def _generate(model: nn.Module, prompt: Batch, device: str) -> Callable[[], None]:
    inputs = {name: value.to(device) for name, value in prompt.items()}

    def call() -> None:
        with torch.inference_mode():
            model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
            _wait(device)

    return call


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _case(
    name: str, what: str, shape: tuple[int, int], calls: Sequence[Callable[[], None]], request: Any
) -> dict[str, Any]:
    """One case timed in turns; `shape` is (batch, tokens of each sequence that count)."""
    batch, length = shape
    tokens = batch * length
    dense, pruned = interleave(calls[0], calls[1], int(request["repeats"]), float(request["seconds"]))
    first, second = summarise(dense, tokens), summarise(pruned, tokens)
    return {
        "name": name,
        "what": what,
        "batch": batch,
        "tokens": length,
        "dense": first,
        "pruned": second,
        **paired(dense, pruned),
    }


def _context(folder: Path) -> int:
    """Tokens that the model of a folder takes at most; not every table of positions has a row for each."""
    config = rewrite_config(PathSource(folder / "config.json")).config
    return inspect(config, []).context


def _full_row(fixed: probe.Fixed, room: int) -> Batch:
    """The first fixed sequence without its padding, repeated to a usual length: words cost no time."""
    row = {name: value[:1] for name, value in fixed.batches[0].items()}
    if "pixel_values" in row:
        return row
    length = min(room, FORWARD_TOKENS.get(fixed.task, ENCODER_TOKENS))
    target = {name: value for name, value in row.items() if name.startswith("decoder_")}
    source = {name: value for name, value in row.items() if name not in target}
    return {**_filled(source, "", length), **_filled(target, "decoder_", length)}


def _filled(row: Batch, side: str, length: int) -> Batch:
    """A row (or the decoder's part of one) without its padding, repeated to a length."""
    if not row:
        return row
    mask = row.get(f"{side}attention_mask")
    if mask is not None:
        row = {name: value[:, : int(mask.sum())] for name, value in row.items()}
    times = -(-length // row[f"{side}input_ids"].shape[1])
    return {name: value.repeat(1, times)[:, :length] for name, value in row.items()}


def _what(batch: int, length: int, row: Batch) -> str:
    """What one timed call does, in words."""
    if "pixel_values" in row:
        sides = " x ".join(map(str, row["pixel_values"].shape[1:]))
        return f"{'one image' if batch == 1 else f'{batch} images'} of {sides} at once"
    target = f", each with a target of {length}," if "decoder_input_ids" in row else ""
    return f"{'one sequence' if batch == 1 else f'{batch} sequences'} of {length} tokens{target} at once"


def _generates(model: nn.Module, task: str, length: int, room: int) -> bool:
    """Whether text can be generated one token after another."""
    if task == TEXT_TO_TEXT:
        # Stock transformers makes as many caches as the encoder has layers, and fails beyond them.
        config: Any = model.config
        return bool(config.num_decoder_layers <= config.num_layers)
    return task == GENERATION and min(length, PROMPT_TOKENS) + NEW_TOKENS <= room


def _latency(dense: nn.Module, request: dict[str, Any], fixed: probe.Fixed) -> dict[str, Any]:
    device = request["device"]
    pruned = stock.load(Path(request["pruned"]), fixed.task, device=device)
    room = _context(Path(request["dense"]))
    row = _full_row(fixed, room)
    images = row.get("pixel_values")
    length = room if images is not None else row["input_ids"].shape[1]
    cases = []
    for batch in (1, BATCH):
        inputs = {name: value.expand(batch, *value.shape[1:]).contiguous() for name, value in row.items()}
        calls = [_forward(model, inputs, fixed.task, device) for model in (dense, pruned)]
        what = _what(batch, length, row)
        cases.append(_case("forward" if batch == 1 else "batch", what, (batch, length), calls, request))
    if _generates(dense, fixed.task, length, room):
        prompt = {"input_ids": row["input_ids"][:, :PROMPT_TOKENS]}
        prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        count = prompt["input_ids"].shape[1]
        calls = [_generate(model, prompt, device) for model in (dense, pruned)]
        what = f"{NEW_TOKENS} new tokens one by one after a prompt of {count}"
        cases.append(_case("generate", what, (1, NEW_TOKENS), calls, request))
    return {
        "device": probe.device_name(device),
        "threads": torch.get_num_threads(),
        "runtime": f"transformers {_version('transformers')}, torch {torch.__version__}",
        "interleaved": True,
        "dtype": {
            "dense": str(next(dense.parameters()).dtype).removeprefix("torch."),
            "pruned": str(next(pruned.parameters()).dtype).removeprefix("torch."),
        },
        "cases": cases,
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def work_through(request: dict[str, Any]) -> dict[str, Any]:
    """What the measuring process does, in order: dense model, its memory, then both in turns."""
    device = request["device"]
    before = probe.memory_now()
    fixed = probe.read_inputs(Path(request["inputs"]))
    dense = stock.load(Path(request["dense"]), fixed.task, device=device)
    memory = None
    if "memory" in request["measure"]:
        with torch.inference_mode():
            for batch in fixed.batches:
                stock.answer(dense, batch, fixed.task)
        memory = {"dense": probe.memory_report(before, device), "pruned": None}
    latency = _latency(dense, request, fixed) if "latency" in request["measure"] else None
    return {"latency": latency, "memory": memory}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    torch.set_num_threads(max(1, int(request["threads"])))
    sys.stdout.write(json.dumps(work_through(request)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
