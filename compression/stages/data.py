"""The datasets of a job as batches, and what they share."""

from __future__ import annotations

import math
from typing import Any

from compression.anatomy.budget import default_length, stated_length
from compression.loading.data import DataPlan, Sequences, TrainingRows, overlap
from compression.recovery.registry import load_all
from compression.stages.job import Data, Loaded


def open_data(loaded: Loaded) -> Data:
    """The plan of the job's datasets and the evaluation batches. Raises DatasetInvalid,
    DatasetInsufficient.
    """
    spec = loaded.specification
    if not spec.datasets():
        return Data()
    plan = DataPlan(
        loaded.folder,
        loaded.admission.config,
        loaded.admission.task,
        loaded.request.datasets,
        evaluation_dataset=spec.evaluation.dataset,
        holdout=bool(spec.evaluation.holdout),
    )
    data = Data(plan)
    if spec.evaluation.dataset is not None:
        length = evaluation_length(loaded)
        data.evaluation = plan.evaluation(spec.evaluation.dataset, spec.evaluation.samples, length)
    return data


def evaluation_length(loaded: Loaded) -> int:
    """Tokens of an evaluation sequence."""
    return stated_length(loaded.specification, loaded.inspection)


def calibration_length(loaded: Loaded) -> int:
    """Tokens of a calibration sequence."""
    calibration = loaded.specification.calibration
    given = calibration.sequence_length if calibration else None
    return given or default_length(loaded.inspection)


def calibrate(loaded: Loaded, data: Data) -> Sequences | None:
    """The calibration batches, if the specification names a dataset for them."""
    spec = loaded.specification.calibration
    if spec is None or data.plan is None:
        return None
    length = calibration_length(loaded)
    data.calibration = data.plan.calibration(spec.dataset, spec.samples, length, spec.seed, spec.batch_size)
    found = data.calibration
    if found.sequences < spec.samples:
        loaded.observer.log(
            f"The calibration dataset gives {found.sequences} sequences of up to {length} tokens, "
            f"not the {spec.samples} asked for."
        )
    note_overlap(loaded, data, "calibration", found)
    return found


def recovery_rows(loaded: Loaded, data: Data) -> TrainingRows:
    """Samples for the recovery: as many as its budget can use, at most."""
    spec = loaded.specification
    dataset = spec.recovery.dataset or (spec.calibration.dataset if spec.calibration else None)
    assert data.plan is not None
    assert dataset is not None
    options: Any = load_all()[spec.recovery.method].options.model_validate(spec.recovery.options)
    wanted = spec.recovery.budget.steps * getattr(options, "batch_size", 8)
    wanted = math.ceil(wanted / (1 - getattr(options, "held_out", 0.0)))
    data.recovery = data.plan.training(dataset, wanted, calibration_length(loaded), spec.seed)
    note_overlap(loaded, data, "recovery", data.recovery)
    return data.recovery


def note_overlap(loaded: Loaded, data: Data, use: str, found: Sequences | TrainingRows) -> None:
    """Count the texts that a use of data shares with the evaluation, and say so when there are any."""
    if data.evaluation is None:
        return
    shared = overlap(found, data.evaluation)
    data.overlap[use] = shared
    if shared:
        loaded.observer.log(
            f"{shared} of {len(data.evaluation.texts)} evaluation texts are also {use} texts: "
            "the quality measured on them is too good."
        )
