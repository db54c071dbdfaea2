"""Times of a graph's layers on the job's own device: measured where no earlier job left them, as a target,
and as the account of what did not get faster."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor

from compression.errors import TargetUnreachable
from compression.evaluation import probe
from compression.evaluation.measure import MeasurementFailed
from compression.graphs.allocation import Bound, Plan
from compression.graphs.dependencies import Anatomy
from compression.graphs.layer_shape import LayerShape
from compression.graphs.layer_shapes import LayerModel
from compression.graphs.layer_times import FINER, Ranges, TimeModel, TimesMissing
from compression.graphs.pruning import Chosen
from compression.specification import quantity
from compression.stages.graphs import choice
from compression.stages.graphs.blame import behind, slow_layers
from compression.stages.graphs.check import free_batch, write_arrays
from compression.stages.job import Loaded

MODULE = "compression.stages.graphs.timer"
SECONDS, MOST_SECONDS = 12.0, 60.0
"""How long layers are measured, and how long at most if even the least that is needed takes longer."""
KEPT_SHAPES = 3000
"""Of a table that later jobs read again."""
AGAIN = 4
"""Choices that are made anew with the measured times of the last one's own shapes."""


@dataclass
class DeviceTimes:
    """Seconds of layer shapes on this device, by key; what is measured is left to later jobs of the same
    device, runtime, threads and dtype."""

    loaded: Loaded
    table: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self._path()
        if path is not None and path.is_file():
            self.table = _read(path)

    def measure(self, shapes: Iterable[LayerShape], seconds: float = SECONDS) -> None:
        """Measure those shapes that are not known yet, in their order, for so long. Raises
        MeasurementFailed."""
        keys = [key for key in dict.fromkeys(shape.key for shape in shapes) if key not in self.table]
        if not keys:
            return
        found = self._ask(layers=keys, seconds=seconds, model=None, inputs=None)
        new = {key: one for key, one in zip(keys, found["seconds"], strict=True) if one is not None}
        self.table |= new
        self._leave(new)

    def whole(self, inputs: dict[str, Tensor]) -> float:
        """Seconds of one run of the dense model, undisturbed; known of this very model and sizes, if an
        earlier job left them, so that the same job chooses the same."""
        loaded = self.loaded
        files = [loaded.files[name] for name in loaded.admission.weights]
        shapes = {name: list(value.shape) for name, value in inputs.items()}
        key = json.dumps(["whole", files, shapes], sort_keys=True)
        if key in self.table:
            return self.table[key]
        path = write_arrays(self._folder() / "timed.safetensors", inputs, {})
        model = str(loaded.folder.resolve() / loaded.admission.weights[0])
        found = self._ask(layers=[], seconds=0.0, model=model, inputs=str(path))
        self.table[key] = float(found["whole"])
        self._leave({key: self.table[key]})
        return self.table[key]

    def _folder(self) -> Path:
        folder = self.loaded.work / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _ask(self, **request: Any) -> dict[str, Any]:
        folder = self._folder()
        threads = self.loaded.request.threads
        common = {"threads": threads, "dtype": self.loaded.admission.dtype, "folder": str(folder)}
        path = folder / "layers.json"
        path.write_text(json.dumps({**common, **request}), encoding="utf-8")
        try:
            return probe.child(MODULE, [str(path)], threads=threads)
        except probe.ChildFailed as error:
            raise MeasurementFailed(f"timing the layers failed: {error.detail}") from None

    def _path(self) -> Path | None:
        """Where the table of this device is kept between jobs, if anywhere."""
        cache = self.loaded.request.cache
        if cache is None:
            return None
        facts = [
            probe.device_name("cpu"), self.loaded.request.threads, f"onnxruntime {onnxruntime.__version__}",
            str(self.loaded.admission.dtype),
        ]  # fmt: skip
        return cache / f"layers-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"

    def _leave(self, new: dict[str, float]) -> None:
        path = self._path()
        if path is None:
            return
        kept = dict(list((self.table | new).items())[-KEPT_SHAPES:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept), encoding="utf-8")


def _read(path: Path) -> dict[str, float]:
    """The table of a file; empty for what is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items() if float(value) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True)
class Timed:
    """A choice: the units that go and, if it was by latency, the seconds that tables promise for the graph
    as it is and without them, with what was aimed at."""

    units: Chosen
    promised: dict[str, float] | None


class Timing:
    """Choices by latency of one graph."""

    def __init__(self, loaded: Loaded, anatomy: Anatomy, inputs: dict[str, Tensor]) -> None:
        self._loaded, self._anatomy = loaded, anatomy
        self._layers = LayerModel(anatomy)
        self._times = DeviceTimes(loaded)
        one = {name: value[:1] for name, value in inputs.items()} if free_batch(anatomy) else inputs
        self._whole = self._times.whole(one)

    def choose(self, ways: choice.Ways) -> Timed:
        """The units that go so that measured times of layers promise the latency that the job asks for. The
        shapes of a choice are measured themselves; where they take longer than the widths around them said,
        it is made anew. Raises TargetUnreachable, MeasurementFailed."""
        ranges = self._measured(ways)
        form, amount = quantity("latency", self._loaded.specification.target.value)
        goal = amount * self._whole if form == "ratio" else amount
        for _ in range(AGAIN):
            model = TimeModel(self._layers, ranges, dict(self._times.table), self._whole)
            found = self._within(model, goal, ways)
            self._times.measure(self._layers.shapes(found).values())
            exact = TimeModel(self._layers, ranges, dict(self._times.table), self._whole).seconds(found)
            if exact <= goal:
                ratio = exact / self._whole
                return Timed(found, {"dense": self._whole, "pruned": exact, "ratio": ratio, "aimed": goal})
        raise TargetUnreachable(
            f"no choice of channels was found whose measured layers take {_milliseconds(goal)}: the last "
            f"one takes {_milliseconds(exact)}, the dense model {_milliseconds(self._whole)}. Ask for a "
            "little more"
        )

    def _within(self, model: TimeModel, goal: float, ways: choice.Ways) -> Chosen:
        limit = choice.Limit("latency", goal, self._whole, model.seconds, _milliseconds)
        return choice.within(self._anatomy, limit, ways)

    def _measured(self, ways: choice.Ways) -> Ranges:
        """The widths between which times are known."""
        scores = choice.known_scores(self._anatomy, ways)
        bound = Bound(lambda gone: 0.0, 0.0, "", ways.share_kept, ways.multiple)
        plan = Plan(self._anatomy, scores, bound)
        dense = self._layers.shapes({})
        ranges = Ranges.between(dense, self._layers.shapes(plan.by_count(plan.limits)))
        started, known = time.monotonic(), len(self._times.table)
        self._times.measure(ranges.wanted(FINER[:1]), MOST_SECONDS)
        left = SECONDS - (time.monotonic() - started)
        if left > 0:
            self._times.measure(ranges.wanted(), left)
        for shape in ranges.least:
            if not all(one.key in self._times.table for one in ranges.lattice(shape, FINER[0])):
                raise TimesMissing(
                    f"the layers of this graph were not all timed within {MOST_SECONDS:.0f} seconds "
                    f"({shape.text} was not): aim at macs instead"
                )
        self._loaded.observer.log(
            f"{len(self._times.table) - known:,} shapes of layers were timed in "
            f"{time.monotonic() - started:.1f} s; the dense model takes {_milliseconds(self._whole)}."
        )
        if self._layers.untimed:
            self._loaded.observer.log(
                f"Operators that are not timed apart: {', '.join(self._layers.untimed)}; what they take "
                "shrinks with what the timed layers give."
            )
        return ranges


def explain(
    loaded: Loaded, anatomy: Anatomy, units: Chosen, measured: dict[str, Any], macs: float
) -> dict[str, Any] | None:
    """What the report says of layers that did not get faster, where a measured latency is far above the ratio
    `macs` of multiply-accumulates; None where it is not. Raises MeasurementFailed."""
    forward = measured["cases"][0]
    if not behind(forward["ratio"], macs):
        return None
    model, times = LayerModel(anatomy), DeviceTimes(loaded)
    dense, pruned = model.shapes({}), model.shapes(units)
    pairs = sorted(zip(dense.values(), pruned.values(), strict=True), key=lambda pair: -pair[0].macs)
    times.measure(shape for pair in pairs for shape in pair)
    # Times of layers are undisturbed ones: so is a tenth percentile, nearly.
    seconds = forward["dense"]["p10"], forward["pruned"]["p10"]
    return slow_layers(dense, pruned, times.table, seconds)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
