"""A job from beginning to end: model and specification in, smaller model and report out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression.anatomy.graph import is_graph
from compression.checkpoint import Hook
from compression.device import describe_device
from compression.evaluation import nursery, probe
from compression.export.artifact import Artifact
from compression.loading.onnx.admission import ENDING
from compression.report.build import build
from compression.report.html import render
from compression.report.types import ReportInputs
from compression.stages import data as datasets
from compression.stages import finish, load, prune, retold, timing
from compression.stages.job import Loaded, Observer, Request
from compression.stages.judge import Qualities

__all__ = ["STAGES", "Observer", "Outcome", "Request", "fork_nursery", "run"]

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


def fork_nursery(request: Request) -> None:
    """Fork off the process in which the result will be verified: for processes that run one job, before it.
    Not where memory is limited, since what the fork shares would be counted twice, and not for graphs, which
    a process without torch verifies."""
    if any(request.model.glob(f"*{ENDING}")):
        return
    if request.specification.limits.memory_bytes is None:
        nursery.fork_off(request.threads, probe.child_environment(request.threads))


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
    if is_graph(loaded.inspection):
        return _run_graph(request, loaded, clock, resumed=resumed)
    return _run_layers(request, loaded, clock, resumed=resumed)


def _run_layers(request: Request, loaded: Loaded, clock: _Clock, *, resumed: bool) -> Outcome:
    """The stages of a model of layers, as transformers knows it."""
    clock.enter("inspect")
    _inspect(loaded)
    clock.enter("baseline")
    data = datasets.open_data(loaded)
    judged = Qualities(loaded, data)
    judged.dense()
    clock.enter("calibrate")
    datasets.calibrate(loaded, data)
    pruned = prune.prune(loaded, data, lambda: clock.enter("prune"))
    again = retold.read_again(loaded, data, pruned)
    judged.pruned(pruned, again)
    compared = judged.baselines()
    clock.enter("recover")
    final = finish.finish(loaded, again, pruned)
    clock.enter("evaluate")
    judged.recovered(final, pruned, again)
    cost = finish.costs(loaded, pruned, final)
    judged.announce()
    clock.enter("export")
    artifact = finish.export(loaded, pruned, final, _figures(cost, judged))
    clock.enter("verify")
    verified, measured = finish.check(loaded, again, pruned, final, artifact)
    clock.enter(None)
    report = build(
        ReportInputs(
            **_provenance(loaded),
            cost=cost,
            **judged.to_report(),
            data=data.facts() | {"recovery": again.facts()["recovery"]},
            artifact={"bytes": artifact.bytes, "files": artifact.files, "gguf": artifact.gguf},
            seconds=clock.seconds,
            baselines=compared,
            **(pruned.to_report() | {"vocabulary": retold.account(data, again, pruned)}),
            recovery=final.recovery,
            measured=measured,
            verification=verified,
            resumed=resumed,
        )
    )
    return _write(request.work, artifact, report)


def _run_graph(request: Request, loaded: Loaded, clock: _Clock, *, resumed: bool) -> Outcome:
    """The stages of a network given as a graph."""
    # Imported here: other jobs need no onnx.
    from compression.stages.graphs import run as graphs

    artifact, found = graphs.run(loaded, clock.enter)
    clock.enter(None)
    report = build(
        ReportInputs(
            **_provenance(loaded),
            **found,
            artifact={"bytes": artifact.bytes, "files": artifact.files, "gguf": None},
            seconds=clock.seconds,
            resumed=resumed,
        )
    )
    return _write(request.work, artifact, report)


def _inspect(loaded: Loaded) -> None:
    """Look at the values of the weights, and see that the times of layers are known where they are needed."""
    load.check_weights(loaded)
    timing.prepare(loaded)


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


def _figures(cost: dict[str, Any], judged: Qualities) -> dict[str, Any]:
    """The figures that the artifact carries: counts and metrics, nothing that was timed."""
    counts = ("parameters", "nonzeros", "bytes", "macs", "sparsity", "sequence_length")
    figures = {
        "cost": {name: {key: part[key] for key in counts} for name, part in cost.items()},
        "quality": _metrics(judged.general),
    }
    return figures | ({"domain_quality": _metrics(judged.domain)} if judged.domain["dense"] else {})


def _metrics(qualities: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found["metrics"] for name, found in qualities.items() if found}


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
