"""A job from beginning to end: model and specification in, smaller model and report out."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression.checkpoint import Hook
from compression.device import describe_device
from compression.export.artifact import Artifact
from compression.report.build import build
from compression.report.html import render
from compression.report.types import ReportInputs
from compression.stages import data as datasets
from compression.stages import finish, load, prune
from compression.stages.job import Data, Loaded, Observer, Pruned, Request

__all__ = ["STAGES", "Observer", "Outcome", "Request", "run"]

STAGES = ("load", "inspect", "baseline", "calibrate", "prune", "recover", "evaluate", "export", "verify")


@dataclass(frozen=True)
class Outcome:
    """What a job leaves: the artifact's folder, the report as JSON and HTML, and its main figures."""

    artifact: Path
    report: Path
    report_html: Path
    summary: dict[str, Any]


class _Clock:
    """Announces stages and notes how long each took."""

    def __init__(self, observer: Observer) -> None:
        self.seconds: dict[str, float] = {}
        self._observer = observer
        self._name: str | None = None
        self._since = 0.0

    def enter(self, name: str | None) -> None:
        """The stage before is over; `name` begins (None: nothing does)."""
        now = time.monotonic()
        if self._name is not None:
            self.seconds[self._name] = now - self._since
        self._name, self._since = name, now
        if name is not None:
            self._observer.stage(name)


def run(request: Request, observer: Observer, *, hook: Hook | None = None) -> Outcome:
    """Run a job; a job that was killed goes on from the steps under `work/checkpoints`. Raises
    CompressionError.

    `hook(name)` is called at "mid_load", "mid_block", "before_checkpoint_rename", "after_checkpoint_rename"
    and "mid_export", so that a test can kill the process there.
    """
    clock = _Clock(observer)
    request.work.mkdir(parents=True, exist_ok=True)
    clock.enter("load")
    loaded = load.load(request, observer, hook or (lambda name: None))
    resumed = bool(loaded.store.names())
    clock.enter("inspect")
    load.check_weights(loaded)
    clock.enter("baseline")
    data = datasets.open_data(loaded)
    qualities = {"dense": _dense_quality(loaded, data)}
    clock.enter("calibrate")
    calibration = datasets.calibrate(loaded, data)
    pruned = prune.prune(loaded, calibration, lambda: clock.enter("prune"))
    qualities["pruned"] = _pruned_quality(loaded, data, pruned)
    compared = _baselines(loaded, data)
    clock.enter("recover")
    final = finish.finish(loaded, data, pruned)
    clock.enter("evaluate")
    recovered = final.recovery is not None
    qualities["recovered"] = finish.final_quality(loaded, data, final) if recovered else None
    cost = finish.costs(loaded, pruned, final)
    _announce(observer, qualities)
    clock.enter("export")
    artifact = finish.export(loaded, pruned, final, _figures(cost, qualities))
    clock.enter("verify")
    verified, measured = finish.check(loaded, data, final, artifact)
    clock.enter(None)
    report = build(
        ReportInputs(
            **_provenance(loaded),
            cost=cost,
            quality=qualities,
            data=data.facts(),
            artifact={"bytes": artifact.bytes, "files": artifact.files},
            seconds=clock.seconds,
            baselines=compared,
            facts=pruned.sites,
            dropped=pruned.layers,
            recovery=final.recovery,
            measured=measured,
            verification=verified,
            resumed=resumed,
        )
    )
    return _write(request.work, artifact, report)


def _provenance(loaded: Loaded) -> dict[str, Any]:
    """What the report says of where the result comes from."""
    return {
        "specification": loaded.specification.to_json(),
        "recipe": loaded.recipe.to_json(),
        "model": _model_facts(loaded),
        "inputs": {"model": dict(loaded.files), "datasets": dict(loaded.datasets)},
        "versions": loaded.versions,
        "device": describe_device(loaded.device),
    }


def _dense_quality(loaded: Loaded, data: Data) -> dict[str, Any] | None:
    if data.evaluation is None:
        return None
    if not loaded.store.has("baseline"):
        found = finish.quality(loaded, data, loaded.dense_model(), None)
        loaded.store.save("baseline", None, {"quality": found})
    result: dict[str, Any] = loaded.store.data("baseline")["quality"]
    return result


def _pruned_quality(loaded: Loaded, data: Data, pruned: Pruned) -> dict[str, Any] | None:
    if data.evaluation is None:
        return None
    if not loaded.store.has("pruned-quality"):
        loaded.store.save("pruned-quality", None, {"quality": prune.judge(loaded, data, pruned)})
    result: dict[str, Any] = loaded.store.data("pruned-quality")["quality"]
    return result


def _baselines(loaded: Loaded, data: Data) -> dict[str, Any]:
    """Quality of each baseline that was asked for; one that is the recipe itself is not run again."""
    if data.evaluation is None:
        return {}
    wanted = [name for name in loaded.specification.evaluation.baselines if name != loaded.recipe.name]
    return {name: prune.compare(loaded, data, name, data.calibration) for name in wanted}


def _announce(observer: Observer, qualities: dict[str, Any]) -> None:
    for name, found in qualities.items():
        for metric, value in (found["metrics"] if found else {}).items():
            if value is not None:
                observer.metric(f"{name}/{metric}", float(value))


def _figures(cost: dict[str, Any], qualities: dict[str, Any]) -> dict[str, Any]:
    """The figures that the artifact carries: counts and metrics, nothing that was timed."""
    counts = ("parameters", "nonzeros", "bytes", "macs", "sparsity", "sequence_length")
    return {
        "cost": {name: {key: part[key] for key in counts} for name, part in cost.items()},
        "quality": {name: found["metrics"] for name, found in qualities.items() if found},
    }


def _model_facts(loaded: Loaded) -> dict[str, Any]:
    inspection = loaded.inspection
    facts = (
        "layers",
        "hidden",
        "heads",
        "key_value_heads",
        "ffn",
        "vocabulary",
        "context",
        "tied_embeddings",
    )
    return {
        "architecture": loaded.admission.architecture,
        "family": loaded.admission.family,
        "task": loaded.admission.task,
        "dtype": loaded.admission.dtype,
        "parameters": loaded.admission.parameters,
        **{name: getattr(inspection, name) for name in facts},
    }


def _write(work: Path, artifact: Artifact, report: dict[str, Any]) -> Outcome:
    path, page = work / "report.json", work / "report.html"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    page.write_text(render(report), encoding="utf-8")
    shutil.rmtree(work / "scratch", ignore_errors=True)
    return Outcome(artifact.folder, path, page, dict(report["summary"]))
