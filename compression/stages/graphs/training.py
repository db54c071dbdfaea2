"""The schedule of a job on a graph: its weights trained, and the units that go, as a step that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from compression.errors import DatasetInsufficient, DatasetInvalid
from compression.graphs import batches as graph_batches
from compression.graphs.allocation import Chosen
from compression.graphs.costs import costs
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import to_numpy, to_torch
from compression.graphs.losses import Objective
from compression.graphs.pruning import score_units
from compression.graphs.schedules import SCHEDULES, Outcome, Settings, Work
from compression.loading.images.plan import ImagePlan, TrainingImages
from compression.specification import quantity
from compression.stages.graphs import choice
from compression.stages.graphs.network import PIXELS, fixed_batch, inputs_of
from compression.stages.graphs.statistics import Shown
from compression.stages.job import Data, Loaded

TRAINED = "trained"
CHECKPOINTS = "training-"


def prepared(loaded: Loaded, data: Data, anatomy: Anatomy, stored: int) -> tuple[Anatomy, Chosen]:
    """The anatomy with weights as the job's schedule trains them, and the units that go; `stored` are the
    bytes of the model's files. Kept as a step. Raises DatasetInvalid, DatasetInsufficient, TargetUnreachable,
    RecoveryDiverged."""
    if not loaded.store.has(TRAINED):
        work = _work(loaded, data, anatomy, stored)
        # Whether any choice meets the target is known before hours of training.
        work.choose({group.name: np.arange(1.0, group.units + 1) for group in anatomy.groups})
        outcome = SCHEDULES[str(loaded.specification.options["schedule"])].run(work)
        for line in outcome.told:
            loaded.observer.log(line)
        _keep(loaded, anatomy, outcome)
    tensors, told = loaded.store.load(TRAINED)
    arrays = dict(anatomy.graph.initializers)
    arrays |= {name: to_numpy(tensor, np.asarray(arrays[name])) for name, tensor in tensors.items()}
    units: Chosen = told["units"]
    return replace(anatomy, graph=replace(anatomy.graph, initializers=arrays)), units


def _keep(loaded: Loaded, anatomy: Anatomy, outcome: Outcome) -> None:
    before = anatomy.graph.initializers
    changed = {
        name: to_torch(array, name)
        for name, array in outcome.graph.initializers.items()
        if array is not before[name]
    }
    loaded.store.save(TRAINED, changed, {"units": outcome.units})
    loaded.store.discard(loaded.store.names(CHECKPOINTS))


def _work(loaded: Loaded, data: Data, anatomy: Anatomy, stored: int) -> Work:
    spec, options = loaded.specification, loaded.specification.options
    images, criterion = _images(loaded, data, anatomy), str(options["criterion"])
    dtype = str(loaded.admission.dtype)

    def score(changed: Anatomy) -> dict[str, Scores]:
        evidence = Shown(changed, options, data, spec.seed).evidence(criterion)
        return score_units(changed, criterion, evidence, spec.seed)

    def choose(
        scores: Mapping[str, Scores], share: float = 1.0, scales: Mapping[str, float] | None = None
    ) -> Chosen:
        ways = choice.plain_ways(options, criterion, spec.seed)
        ways = replace(ways, given=scores, share=share, scales=scales)
        return choice.choose(anatomy, spec.target, stored, dtype, ways)

    def read(batch: Mapping[str, Tensor]) -> graph_batches.Batch:
        return graph_batches.Batch(inputs_of(anatomy.graph, batch[PIXELS]), batch.get("labels"))

    measure, ratio = _asked(loaded, anatomy, stored)
    settings = Settings(
        int(options["steps"]), min(int(options["batch_size"]), len(images)), int(options["rounds"]),
        options["learning_rate"], options["penalty"], spec.seed,
    )  # fmt: skip
    objective = _objective(str(options["loss"]), images)
    return Work(
        anatomy,
        images,
        read,
        objective,
        settings,
        score,
        choose,
        measure,
        ratio,
        loaded.store,
        loaded.observer,
    )


def _images(loaded: Loaded, data: Data, anatomy: Anatomy) -> TrainingImages:
    """The calibration images, by number. DatasetInvalid for a graph that takes no batch but its own."""
    calibration = loaded.specification.calibration
    assert calibration is not None
    assert isinstance(data.plan, ImagePlan)
    size = fixed_batch(anatomy.graph)
    if size is not None:
        raise DatasetInvalid(
            f"the model takes batches of {size} and no others, so it cannot be trained: export it with a "
            'free batch, or take the schedule "one-shot"'
        )
    images = data.plan.training(calibration.dataset, calibration.samples, 0, calibration.seed)
    if len(images) < 2:
        raise DatasetInsufficient("training needs two calibration images at least")
    return images


def _objective(loss: str, images: TrainingImages) -> Objective:
    """What the option says; by itself: labels where all images have one, the dense graph otherwise."""
    if loss == "labels" and images.labels is None:
        raise DatasetInvalid(
            'options.loss "labels" needs calibration images that all have a label: give such, or take '
            '"dense", which follows the dense graph'
        )
    labelled = loss == "labels" or (loss == "auto" and images.labels is not None)
    return Objective(labels=1.0, dense=0.0) if labelled else Objective()


def _asked(loaded: Loaded, anatomy: Anatomy, stored: int) -> tuple[Literal["macs", "parameters"], float]:
    """What the target measures, and the share of it that is to be left; bytes are those of parameters."""
    target = loaded.specification.target
    if target.kind == "sparsity":
        return "parameters", 1 - float(target.value)
    form, amount = quantity(target.kind, target.value)
    dense: dict[str, Any] = {"bytes": stored}
    if form == "absolute" and target.kind != "bytes":
        found = costs(anatomy.graph, seen=anatomy.probe)
        dense |= {"macs": found.macs, "parameters": found.parameters}
    ratio = amount if form == "ratio" else amount / dense[target.kind]
    return ("macs" if target.kind == "macs" else "parameters"), float(ratio)
