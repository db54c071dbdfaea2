"""A job on a graph, from the admitted model to the inputs of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.evaluation.quality import evaluate
from compression.evaluation.types import EvaluationData
from compression.export.artifact import Artifact
from compression.graphs.combining import combine
from compression.graphs.costs import Costs, costs
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import Graph
from compression.graphs.pruning import Chosen
from compression.graphs.reconstruction import Fit, reconstruct
from compression.graphs.removal import Kept
from compression.graphs.schedules.base import ONE_SHOT
from compression.loading.images.plan import Images
from compression.stages import data as datasets
from compression.stages.graphs import artifact as artifacts
from compression.stages.graphs import choice, latency, training
from compression.stages.graphs.account import cost, fits_account, graph_account, told
from compression.stages.graphs.check import ROWS, Checks, check_exact
from compression.stages.graphs.files import check_finite, read_network, store
from compression.stages.graphs.network import Network, fixed_inputs
from compression.stages.graphs.recover import Recovered, check_recoverable, recover
from compression.stages.graphs.statistics import Shown
from compression.stages.graphs.ways import ways_of
from compression.stages.job import Data, Loaded

BASELINES = {"magnitude": "group-l2", "random": "random"}
"""The criterion of each baseline."""
CHOICE = "units"
Enter = Callable[[str], None]
Quality = dict[str, Any]


class GraphJob:
    """The state of one job; its methods are the stages, in order."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.options = loaded.specification.options
        self.anatomy: Anatomy
        self.dense: Costs
        self.data = Data()
        self.recovered: Recovered | None = None
        self.slow: dict[str, Any] | None = None
        self.timing: latency.Timing | None = None
        self.fits: dict[str, Any] | None = None
        self.quality: dict[str, Quality | None] = {"dense": None, "pruned": None, "recovered": None}
        self.facts: list[dict[str, Any]] = []

    def inspect(self) -> None:
        """Read the graph and find what hangs together. Raises GraphInvalid, OperatorUnknown,
        WeightsNotFinite."""
        loaded = self.loaded
        graph = read_network(loaded.folder, loaded.admission.weights[0])
        check_finite(graph)
        check_recoverable(loaded, graph)
        self.anatomy = analyse(graph, self.options["sizes"])
        self.dense = costs(graph, seen=self.anatomy.probe)
        units = sum(group.units for group in self.anatomy.groups)
        loaded.observer.log(
            f"{units:,} channels in {len(self.anatomy.groups):,} groups can be removed; the graph makes "
            f"{self.dense.macs:,} multiply-accumulates a sample."
        )
        if self.anatomy.uncut:
            loaded.observer.log(f"What stays whole: {choice.reasons(self.anatomy)}.")

    def baseline(self) -> None:
        """Open the data and judge the dense graph."""
        self.data = datasets.open_data(self.loaded)
        if self.data.evaluation is not None:
            self._network = Network(self.anatomy.graph, self.loaded.observer.progress)
            self.quality["dense"] = self._kept("baseline", lambda: self._judged(self._network))

    def calibrate(self) -> None:
        """Open the calibration images, where there are any."""
        datasets.calibrate(self.loaded, self.data)
        self.shown = Shown(self.anatomy, self.options, self.data, self.loaded.specification.seed)

    def prune(self) -> None:
        """Choose units (a step that is kept) and cut them out."""
        steps = self.loaded.store
        batches = None if self.data.evaluation is None else self.data.evaluation.batches
        seed = self.loaded.specification.seed
        self.inputs = fixed_inputs(self.anatomy.graph, batches, ROWS, self.options["sizes"], seed)
        self.trained, made = self.anatomy, None
        if self.options["schedule"] != ONE_SHOT:
            stored = artifacts.stored_bytes(self.loaded, self.loaded.folder)
            self.trained, chosen = training.prepared(self.loaded, self.data, self.anatomy, stored)
            made = latency.Timed(chosen, None)
        if not steps.has(CHOICE):
            made = made or self._choose(str(self.options["criterion"]))
            steps.save(CHOICE, None, {"units": made.units, "promised": made.promised})
        self.units: Chosen = steps.data(CHOICE)["units"]
        self.loaded.hook("mid_block")
        self.smaller = cut(self.trained, self.units)
        self.pruned = costs(self.smaller, self.options["sizes"])
        dtype = str(self.loaded.admission.dtype)
        self.exactness = check_exact(self.trained, self.units, self.smaller, self.inputs, dtype)
        if self.options["update"] != "none":
            self._fit(str(self.options["update"]))

    def _fit(self, update: str) -> None:
        """Change what stays so that it makes up for what went in the graph as it was trained; `fits` is what
        the report says of it."""
        if update == "combination":
            done = combine(self.trained, self.units)
        else:
            done = reconstruct(self.trained, self.units, self.shown.batches(), Fit(update))
        self.smaller = done.graph
        self.pruned = costs(self.smaller, self.options["sizes"])
        self.fits = fits_account(done, update)
        for line in told(self.fits):
            self.loaded.observer.log(line)

    def recover(self) -> None:
        """Recover the cut graph, if that was asked for."""
        self.recovered = recover(
            self.loaded, self.data, self.anatomy, self.units, self.smaller, self._masks()
        )

    def _masks(self) -> Mapping[str, Kept]:
        """By initializer, which weights stay; nothing where whole channels went."""
        return {}

    @property
    def final(self) -> Graph:
        """The graph that is written."""
        return self.smaller if self.recovered is None else self.recovered.graph

    def evaluate(self) -> None:
        """Judge the cut graph, and the recovered one."""
        states = {"pruned": self.smaller} | ({} if self.recovered is None else {"recovered": self.final})
        for state, graph in states.items() if self.data.evaluation is not None else ():
            network = Network(graph, self.loaded.observer.progress)
            self.quality[state] = self._kept(
                f"{state}-quality", partial(self._judged, network, reference=self._network)
            )
        for state, found in self.quality.items():
            for metric, value in (found["metrics"] if found else {}).items():
                if value is not None:
                    self.loaded.observer.metric(f"{state}/{metric}", float(value))

    def baselines(self) -> dict[str, Any]:
        """Quality of simpler criteria at the same target."""
        names = self.loaded.specification.evaluation.baselines
        return {} if self.data.evaluation is None else {name: self._baseline(name) for name in names}

    def _baseline(self, name: str) -> dict[str, Any]:
        def judge() -> Quality:
            network = Network(cut(self.anatomy, self._choose(BASELINES[name], baseline=True).units))
            return self._judged(network, reference=self._network)

        return {"quality": self._kept(f"{name}-quality", judge), "domain": None}

    def _choose(self, criterion: str, *, baseline: bool = False) -> latency.Timed:
        target = self.loaded.specification.target
        seed = self.loaded.specification.seed
        ways = ways_of(self.options, seed, criterion, self.shown, baseline=baseline)
        if target.kind == "latency":
            self.timing = self.timing or latency.Timing(self.loaded, self.anatomy, self.inputs)
            return self.timing.choose(ways)
        stored = artifacts.stored_bytes(self.loaded, self.loaded.folder)
        dtype = str(self.loaded.admission.dtype)
        return latency.Timed(choice.choose(self.anatomy, target, stored, dtype, ways), None)

    def export(self) -> tuple[Artifact, dict[str, Any]]:
        """The artifact, and what both graphs cost."""
        loaded, dtype = self.loaded, str(self.loaded.admission.dtype)
        stored = artifacts.stored_bytes(loaded, loaded.folder)
        dense = cost(self.anatomy.graph, self.dense, stored, dtype)
        found = {"dense": dense, "pruned": cost(self.smaller, self.pruned, self._written_bytes(), dtype)}
        if self.recovered is not None:
            found["recovered"] = cost(self.final, self.pruned, self._written_bytes(), dtype)
        found = self._counted(found)
        counts = ("parameters", "nonzeros", "bytes", "macs", "sparsity")
        figures = {
            "cost": {name: {key: part[key] for key in counts} for name, part in found.items()},
            "quality": {name: part["metrics"] for name, part in self.quality.items() if part},
        }
        return self._write(figures), found

    def _counted(self, found: dict[str, Any]) -> dict[str, Any]:
        """Costs with what this kind of job counts besides."""
        return found

    def _write(self, figures: dict[str, Any]) -> Artifact:
        return artifacts.write(self.loaded, self.anatomy, self.units, self.final, figures)

    def _written_bytes(self) -> int:
        """Bytes of the result's files: written once to be counted, since the card names them."""
        file, *data = self.loaded.admission.weights
        folder = self.loaded.work / "scratch" / "counted"
        folder.mkdir(parents=True, exist_ok=True)
        paths = store(self.final, folder, file, data[0] if data else None)
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            path.unlink()
        return total

    def check(self, artifact: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
        """Verify and measure in clean processes. Raises ArtifactVerificationFailed, MeasurementFailed."""
        checks = Checks(self.loaded, self.anatomy, self.final, self.inputs)
        verified = checks.verify(artifact)
        self.loaded.observer.progress(1, 2)
        measured = checks.measure(artifact, verified)
        if measured["latency"] is not None:
            self._explain(measured["latency"])
        self.loaded.observer.progress(2, 2)
        return verified, measured

    def _explain(self, found: dict[str, Any]) -> None:
        """Beside a measured latency, what was promised, and which layers did not get faster."""
        found["predicted"] = self.loaded.store.data(CHOICE).get("promised")
        ratio = self.pruned.macs / self.dense.macs
        self.slow = latency.explain(self.loaded, self.anatomy, self.units, found, ratio)

    def account(self, found: dict[str, Any]) -> dict[str, Any]:
        """What the report says of the graph."""
        costs_of = found["dense"], found["pruned"]
        account = graph_account(self.anatomy, self.units, costs_of, self.exactness, self.fits)
        return {**account, "slow": self.slow}

    def _judged(self, network: Network, reference: Network | None = None) -> Quality:
        data = self.data.evaluation
        assert isinstance(data, Images)
        judged: EvaluationData = data
        metrics = self.loaded.specification.evaluation.metrics or []
        return evaluate(network, judged, metrics, reference=reference)

    def _kept(self, step: str, make: Callable[[], Quality]) -> Quality:
        steps = self.loaded.store
        if not steps.has(step):
            steps.save(step, None, {"quality": make()})
        found: Quality = steps.data(step)["quality"]
        return found


def run(loaded: Loaded, enter: Enter) -> tuple[Artifact, dict[str, Any]]:
    """All stages after loading; the artifact, and the parts of `ReportInputs` that the job alone knows."""
    job = _job(loaded)
    enter("inspect")
    job.inspect()
    enter("baseline")
    job.baseline()
    enter("calibrate")
    job.calibrate()
    enter("prune")
    job.prune()
    enter("recover")
    job.recover()
    enter("evaluate")
    job.evaluate()
    compared = job.baselines()
    enter("export")
    artifact, found = job.export()
    enter("verify")
    verified, measured = job.check(artifact)
    return artifact, {
        "cost": found,
        "quality": job.quality,
        "data": job.data.facts(),
        "baselines": compared,
        "measured": measured,
        "verification": verified,
        "graph": job.account(found),
        "recovery": None if job.recovered is None else job.recovered.history,
        "facts": job.facts,
    }


def _job(loaded: Loaded) -> GraphJob:
    if loaded.specification.structure.granularity == CHANNEL:
        return GraphJob(loaded)
    # It is built on this module.
    from compression.stages.graphs.weights import WeightsJob

    return WeightsJob(loaded)
