"""What the stages of one job share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from compression.anatomy.inspection import Inspection
from compression.checkpoint import Store
from compression.device import DTYPES, compute_dtype
from compression.loading.admission import Admission
from compression.loading.data import DataPlan, Sequences, TrainingRows
from compression.loading.images.plan import ImagePlan, Images, TrainingImages
from compression.loading.images.streaming import StreamedImages
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.recipes.base import Recipe
from compression.specification import JobSpecification

Hook = Callable[[str], None]


class Observer(Protocol):
    """Whoever follows a job. `stage` is called once a stage, in order; progress is within it."""

    def stage(self, name: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def checkpoint(self, name: str, files: Sequence[Path], data: dict[str, Any]) -> None: ...

    def log(self, message: str) -> None: ...

    def metric(self, name: str, value: float) -> None: ...


@dataclass(frozen=True)
class Request:
    """One job. `specification` is resolved; `model` is a folder; `datasets` maps ids to files; `work` is
    scratch; `cache`, if any, is a folder for measurements that later jobs may read again.
    """

    specification: JobSpecification
    model: Path
    datasets: Mapping[str, Path]
    work: Path
    device: str = "cpu"
    threads: int = 1
    cache: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """What loading gives: the admitted model in a folder of its own, hashes of everything, the store of
    steps.

    `folder` holds the weight files and the rewritten settings; `files` and `datasets` map names to sha256.
    """

    request: Request
    observer: Observer
    hook: Hook
    device: torch.device
    folder: Path
    admission: Admission
    inspection: Inspection
    recipe: Recipe
    files: Mapping[str, str]
    datasets: Mapping[str, str]
    versions: Mapping[str, str]
    store: Store

    @property
    def specification(self) -> JobSpecification:
        """The resolved specification."""
        return self.request.specification

    @property
    def work(self) -> Path:
        """Scratch folder of the job."""
        return self.request.work

    @property
    def output_dtype(self) -> torch.dtype | None:
        """The dtype that weights are written in; None: as they are stored."""
        name = self.specification.output.dtype
        return None if name is None else DTYPES[name]

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype that the result is computed in, by us and by the stock loader."""
        return compute_dtype(self.output_dtype or str(self.admission.config["dtype"]))

    def dense_model(self) -> StreamedModel:
        """The dense model as it came."""
        return StreamedModel(self.folder, self.admission.config, self.admission.family, self.device)


@dataclass
class Data:
    """The data of a job, as far as the specification names any. `domain` is the domain's calibration data.

    `overlap` counts, for each use, the texts that it shares with the evaluation, `domain_overlap` those that
    it shares with the evaluation of the domain.
    """

    plan: DataPlan | ImagePlan | None = None
    evaluation: Sequences | Images | None = None
    calibration: Sequences | Images | None = None
    recovery: TrainingRows | TrainingImages | StreamedImages | None = None
    domain: Sequences | Images | None = None
    domain_evaluation: Sequences | Images | None = None
    overlap: dict[str, int] = field(default_factory=dict)
    domain_overlap: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What the report says of the data."""
        uses = {
            "evaluation": self.evaluation,
            "calibration": self.calibration,
            "recovery": self.recovery,
            "domain_calibration": self.domain,
            "domain_evaluation": self.domain_evaluation,
        }
        facts: dict[str, Any] = {name: None if use is None else use.facts() for name, use in uses.items()}
        return {**facts, "overlap": dict(self.overlap), "domain_overlap": dict(self.domain_overlap)}


@dataclass(frozen=True)
class Pruned:
    """What pruning gives: files laid over the dense weights, or the layers that stay; masks; facts of sites.

    `layers` is the choice of layers as JSON (layer dropping only). Where neurons, heads or experts went,
    `config` is that of the smaller model, `widths` says how many stay, as JSON, and `units` which: by kind,
    layer by layer (hidden channels once for all); `gone` are the stored tensors that it does not have.
    Where layers kept different numbers,
    `counts` are these by kind, `config` and weights are those of the padded model, and `written`, where the
    result comes with code of its own, is a folder with it and its settings.
    Where rows of the vocabulary went, `rows` int64 are the dense model's that stay, in their new order,
    `tokenizer` is a folder with the files that go with the weights, `specials` are the tokens that end and
    fill texts, and `vocabulary` says what went, as JSON.
    Where weights became products, `ranks` are theirs by the name of the dense weight, `low_rank` says it as
    JSON, and `config` is that of the model with code of its own that holds the factors; with `atoms` above 1
    the second factor has one entry for so many columns, `masks` hold its zeros, and it is written packed.
    `skips`: `config` is that of a model with code of its own, which has weights on its skip connections.
    """

    overlay: tuple[Path, ...]
    kept: tuple[int, ...] | None
    masks: Mapping[str, Tensor]
    sites: list[dict[str, Any]]
    layers: dict[str, Any] | None
    config: Mapping[str, Any] | None = None
    widths: dict[str, Any] | None = None
    units: Mapping[str, list[list[int]]] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    written: tuple[Path, Mapping[str, Any]] | None = None
    gone: frozenset[str] = frozenset()
    rows: Tensor | None = None
    tokenizer: Path | None = None
    specials: tuple[int, int] | None = None
    vocabulary: dict[str, Any] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    low_rank: dict[str, Any] | None = None
    atoms: int = 1
    skips: bool = False

    def companions(self, loaded: Loaded) -> Path:
        """The folder whose tokenizer and generation settings go with the weights."""
        return loaded.folder if self.tokenizer is None else self.tokenizer

    def settings(self, loaded: Loaded) -> Mapping[str, Any]:
        """The config of the weights that `source` gives (with all layers of the dense model)."""
        return loaded.admission.config if self.config is None else self.config

    def to_report(self) -> dict[str, Any]:
        """As `ReportInputs` names it."""
        return {
            "facts": self.sites,
            "dropped": self.layers,
            "widths": self.widths,
            "experts": self.units.get("expert"),
            "low_rank": self.low_rank,
        }

    def source(self, loaded: Loaded) -> WeightReader:
        """The weights, pruned ones in place of dense ones (with all layers of the dense model)."""
        return WeightReader(loaded.folder, list(self.overlay), self.gone)

    def model(self, loaded: Loaded) -> StreamedModel:
        """The pruned model, in the dtype that it will be written in."""
        if self.written is not None:
            folder, settings = self.written
            return StreamedModel(
                folder, settings, loaded.admission.family, loaded.device, loaded.result_dtype
            )  # fmt: skip
        return StreamedModel(
            loaded.folder,
            self.settings(loaded),
            loaded.admission.family,
            loaded.device,
            loaded.result_dtype,
            overlay=list(self.overlay),
            keep_layers=self.kept,
        )


class Watched:
    """A model whose progress through its blocks an observer hears of (an `Evaluable`)."""

    def __init__(self, model: StreamedModel, progress: Callable[[int, int], None]) -> None:
        self._model = model
        self._progress = progress

    def outputs(self, batches: Sequence[dict[str, Tensor]]) -> Any:
        """See `StreamedModel.outputs`."""
        return self._model.outputs(batches, self._progress)
