"""Times of layers, measured: models of the class itself, of few layers and random weights, at several widths.

``python -m compression.evaluation.timing REQUEST.json`` builds one model for each width, all with the same
embeddings and head, and times them in turns, so that whatever else the machine does falls on all of them: a
width's time is the median over rounds of its share of the dense layers' time of the same round. What lies
outside the layers is timed with the dense ones. There are as many layers as fill a processor's caches (all
of a smaller model), because the weights of a large model come from memory.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression.anatomy.families import family_of
from compression.anatomy.inspection import ITEM_SIZES, Inspection
from compression.anatomy.latency import (
    LatencyTable,
    compute_dtype_name,
    never_falling,
    shape_key,
    timed_structures,
    timed_tokens,
)
from compression.anatomy.structures import Structure
from compression.device import DTYPES
from compression.errors import CompressionError
from compression.evaluation import probe, stock
from compression.evaluation.types import TEXT_TO_TEXT, Batch
from compression.loading.architectures import ARCHITECTURES
from compression.loading.settings import trimmed_config
from compression.loading.skeleton import compute_buffers
from compression.loading.transformers_import import class_of, without_storage

CACHE_BYTES = 64 << 20
LEAST_ROUNDS = 5
ROUNDS = 40
SECONDS = 6.0
SLOW = 0.1
"""Seconds from which it does not matter what the caches held before."""
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of the units at which layers are timed, beside the fewest and all of them."""


class TimingFailed(CompressionError):
    """The timing process ended badly; the message has the end of what it said."""

    code = "measurement_failed"


def times_layers(inspection: Inspection) -> bool:
    """Whether the layers of a model can be timed apart: there is one list of layers, all alike."""
    blocks = ARCHITECTURES[inspection.architecture].blocks
    return len(blocks) == 1 and "*" not in blocks[0] and not inspection.window_macs


def timed_layers(inspection: Inspection) -> int:
    """How many layers are built: all, or as many as fill CACHE_BYTES."""
    size = ITEM_SIZES[compute_dtype_name(inspection.dtype)] * inspection.layer_parameters
    return max(1, min(inspection.layers, -(-CACHE_BYTES // max(1, size))))


def timed_counts(one: Structure) -> list[int]:
    """The numbers of units that layers are timed with, ascending, all last."""
    possible = [*(one.counts or range(1, one.count)), one.count]
    # Widths that no multiple of 8 make kernels slower than their neighbours, which would spoil both.
    round_ones = [
        n for n in possible if one.kind != "neuron" or one.count < 64 or n % 8 == 0 or n == one.count
    ]
    wanted = [one.count * share for share in (0.0, *SHARES)]
    nearest = {min(round_ones, key=lambda n: abs(n - share)) for share in wanted}
    return sorted({*nearest, one.count})


def measure_table(
    config: Mapping[str, Any],
    inspection: Inspection,
    *,
    dtype: str,
    work: Path,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = SECONDS,
) -> LatencyTable:
    """Time the layers of a model, of which only the (admitted) configuration is needed, in a clean process.

    ``seconds`` bounds the rounds (at least LEAST_ROUNDS are run), not the building. Raises TimingFailed.
    """
    request = {
        "config": dict(config),
        "counts": {one.kind: timed_counts(one) for one in timed_structures(inspection)},
        "layers": timed_layers(inspection),
        "task": inspection.task,
        "tokens": timed_tokens(inspection),
        "image": inspection.image,
        "vocabulary": inspection.vocabulary,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "seconds": seconds,
    }
    work.mkdir(parents=True, exist_ok=True)
    path = work / "timing.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    try:
        found = probe.child(
            "compression.evaluation.timing", [str(path)], threads=threads, interpreter=False
        )  # fmt: skip
    except probe.ChildFailed as error:
        raise TimingFailed(f"timing layers failed: {error.detail}") from None
    return _table(found, inspection, request)


def _table(found: Mapping[str, Any], inspection: Inspection, request: Mapping[str, Any]) -> LatencyTable:
    layer = float(found["layer"])
    levels = {}
    for kind, counts in request["counts"].items():
        # The dense layers are the measure of all others: their own share is one.
        shares = [float(share) for share in found["shares"][kind]]
        smooth = never_falling([min(share, 1.0) for share in shares] + [1.0], [1.0] * len(shares) + [1e9])
        smooth[-1] = 1.0
        levels[kind] = tuple((n, layer * min(share, 1.0)) for n, share in zip(counts, smooth, strict=True))
    return LatencyTable(
        shape=shape_key(inspection),
        device=found["device"],
        kind="cuda" if str(request["device"]).startswith("cuda") else "cpu",
        threads=found["threads"],
        runtime=found["runtime"],
        dtype=request["dtype"],
        tokens=request["tokens"],
        layers=request["layers"],
        rounds=found["rounds"],
        layer=layer,
        rest=max(0.0, float(found["rest"])),
        levels=levels,
    )


# -- in the process that times


class _Enough(BaseException):
    """Ends a forward after its last layer; no error, so nothing may catch it."""


class Stopwatch:
    """Marks of time around the layers of a model: the processor's clock, or events of a CUDA device."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")

    def mark(self) -> Any:
        """Now; on a CUDA device, when what was asked of it so far is done."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds from one mark to another."""
        if not self._cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


class TimedModel:
    """A model whose layers are timed while its own forward runs."""

    def __init__(self, model: nn.Module, path: str, batch: Batch, task: str, device: str) -> None:
        self._model, self._batch, self._task = model, batch, task
        self._watch = Stopwatch(device)
        self._marks: dict[str, Any] = {}
        self._stop = False
        blocks = list(model.get_submodule(path).children())
        blocks[0].register_forward_pre_hook(self._first)
        blocks[-1].register_forward_hook(self._last)

    def _first(self, *_: Any) -> None:
        self._marks["first"] = self._watch.mark()

    def _last(self, *_: Any) -> None:
        self._marks["last"] = self._watch.mark()
        if self._stop:
            raise _Enough

    def layers(self) -> float:
        """Seconds of all layers; what comes after them is not run."""
        self._stop = True
        try:
            stock.answer(self._model, self._batch, self._task)
        except _Enough:
            pass
        return self._watch.between(self._marks["first"], self._marks["last"])

    def whole(self) -> tuple[float, float]:
        """Seconds of all layers, and of the whole forward."""
        self._stop = False
        begun = self._watch.mark()
        stock.answer(self._model, self._batch, self._task)
        ended = self._watch.mark()
        total = self._watch.between(begun, ended)
        return self._watch.between(self._marks["first"], self._marks["last"]), total


def build_model(
    config: Mapping[str, Any], dtype: str, device: str, like: nn.Module | None = None
) -> nn.Module:
    """A model of the configuration's class with random weights; those outside its layers are shared with
    ``like``."""
    architecture = config["architectures"][0]
    known = ARCHITECTURES[architecture]
    model_class = class_of(known.module, architecture)
    with without_storage():
        model: nn.Module = model_class(model_class.config_class.from_dict(dict(config)))
    model.eval()
    place = torch.device(device)
    compute_buffers(model, model, place)
    given = {} if like is None else dict(like.named_parameters(remove_duplicate=False))
    generator = torch.Generator(place).manual_seed(0)
    for owner_name, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            full = f"{owner_name}.{name}" if owner_name else name
            if parameter is None:
                continue
            if full in given and not full.startswith(f"{known.blocks[0]}."):
                module._parameters[name] = given[full]
                continue
            value = torch.ones(parameter.shape, dtype=DTYPES[dtype], device=place)
            if value.dim() > 1:
                bound = value.shape[-1] ** -0.5
                value.uniform_(-bound, bound, generator=generator)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
    if like is None:
        model.tie_weights()  # type: ignore[operator]
    return model


def example(request: Mapping[str, Any]) -> Batch:
    """One sequence (or image) of the request's length, made from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    if request["image"] is not None:
        pixels = torch.randn(1, *request["image"], generator=generator)
        return {"pixel_values": pixels.to(DTYPES[request["dtype"]])}
    size = (1, int(request["tokens"]))
    words = torch.randint(0, int(request["vocabulary"]), size, generator=generator)
    batch = {"input_ids": words, "attention_mask": torch.ones(size, dtype=torch.int64)}
    return batch | ({"decoder_input_ids": words} if request["task"] == TEXT_TO_TEXT else {})


def _models(request: Mapping[str, Any]) -> tuple[TimedModel, dict[str, list[TimedModel]]]:
    """The dense model, and those of each kind with fewer units."""
    config, device, dtype = request["config"], request["device"], request["dtype"]
    path = ARCHITECTURES[config["architectures"][0]].blocks[0]
    family, kept, batch = (
        family_of(config["architectures"][0]),
        range(int(request["layers"])),
        example(request),
    )

    def timed(settings: Mapping[str, Any], like: nn.Module | None) -> tuple[nn.Module, TimedModel]:
        model = build_model(trimmed_config(settings, kept), dtype, device, like)
        return model, TimedModel(model, path, batch, request["task"], device)

    dense, base = timed(config, None)
    others = {
        kind: [timed(family.resized(config, {kind: count}), dense)[1] for count in counts[:-1]]
        for kind, counts in request["counts"].items()
    }
    return base, others


def _settled(model: TimedModel) -> float:
    """Seconds of the layers: of the second run of two, if they are quick."""
    taken = model.layers()
    return model.layers() if taken < SLOW else taken


@torch.inference_mode()
def work_through(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the timing process does: builds the models, and times them in turns."""
    base, others = _models(request)
    dense: list[float] = []
    outside: list[float] = []
    shares: dict[str, list[list[float]]] = {kind: [[] for _ in models] for kind, models in others.items()}
    end = 0.0
    for number in range(-1, ROUNDS):
        if number == 0:
            end = time.perf_counter() + float(request["seconds"])
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        # What is quick is run once before, so that it meets the caches that it would have alone.
        layers, total = base.whole()
        if layers < SLOW:
            layers, total = base.whole()
        again = {kind: [_settled(one) for one in models] for kind, models in others.items()}
        if number < 0:
            continue
        dense.append(layers)
        outside.append(total - layers)
        for kind, times in again.items():
            for place, taken in enumerate(times):
                shares[kind][place].append(taken / layers)
    return {
        "device": probe.device_name(request["device"]),
        "threads": torch.get_num_threads(),
        "runtime": runtime(),
        "rounds": len(dense),
        "layer": statistics.median(dense) / int(request["layers"]),
        "rest": statistics.median(outside),
        "shares": {kind: [statistics.median(one) for one in found] for kind, found in shares.items()},
    }


def runtime() -> str:
    """The software that figures are of."""
    from importlib.metadata import version

    return f"transformers {version('transformers')}, torch {torch.__version__}"


def main(arguments: Sequence[str]) -> int:
    """The command."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    torch.set_num_threads(max(1, int(request["threads"])))
    sys.stdout.write(json.dumps(work_through(request)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
