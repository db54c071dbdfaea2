"""The datasets of a job as batches, and what they share."""

from __future__ import annotations

import math
from typing import Any

from compression.anatomy.budget import default_length, stated_length
from compression.loading.data import DataPlan, Sequences, TrainingRows, overlap
from compression.loading.images.plan import ImagePlan, Images, TrainingImages
from compression.preprocessing import of_model
from compression.recovery.registry import load_all
from compression.stages.job import Data, Loaded


def open_data(loaded: Loaded) -> Data:
    """The plan of the job's datasets and the evaluation batches. Raises DatasetInvalid,
    DatasetInsufficient.
    """
    spec = loaded.specification
    if not spec.datasets():
        return Data()
    plan = open_plan(loaded)
    data = Data(plan)
    if spec.evaluation.dataset is not None:
        length = evaluation_length(loaded)
        data.evaluation = plan.evaluation(spec.evaluation.dataset, spec.evaluation.samples, length)
    return data


def open_plan(loaded: Loaded) -> DataPlan | ImagePlan:
    """What reads the job's datasets: text or images."""
    spec, image = loaded.specification, loaded.inspection.image
    config, datasets = loaded.admission.config, loaded.request.datasets
    evaluated, holdout = spec.evaluation.dataset, bool(spec.evaluation.holdout)
    if image is not None:
        how = spec.preprocessing or of_model(*image[1:])
        held_out = [evaluated] if holdout and evaluated is not None else []
        return ImagePlan(config, image[0], how, datasets, held_out=held_out)
    return DataPlan(
        loaded.folder,
        config,
        loaded.admission.task,
        datasets,
        evaluation_dataset=evaluated,
        holdout=holdout,
    )


def evaluation_length(loaded: Loaded) -> int:
    """Tokens of an evaluation sequence."""
    return stated_length(loaded.specification, loaded.inspection)


def calibration_length(loaded: Loaded) -> int:
    """Tokens of a calibration sequence."""
    calibration = loaded.specification.calibration
    given = calibration.sequence_length if calibration else None
    return given or default_length(loaded.inspection)


def calibrate(loaded: Loaded, data: Data) -> Sequences | Images | None:
    """The calibration batches, if the specification names a dataset for them."""
    spec = loaded.specification.calibration
    if spec is None or data.plan is None:
        return None
    length = calibration_length(loaded)
    data.calibration = data.plan.calibration(spec.dataset, spec.samples, length, spec.seed, spec.batch_size)
    found = data.calibration
    if found.sequences < spec.samples:
        images = isinstance(found, Images)
        what = "images" if images else f"sequences of up to {length} tokens"
        loaded.observer.log(
            f"The calibration dataset gives {found.sequences} {what}, not the {spec.samples} asked for."
        )
    note_overlap(loaded, data, "calibration", found)
    return found


def recovery_rows(loaded: Loaded, data: Data) -> TrainingRows | TrainingImages:
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


def note_overlap(
    loaded: Loaded, data: Data, use: str, found: Sequences | TrainingRows | Images | TrainingImages
) -> None:
    """Count the texts or images that a use of data shares with the evaluation, and say so when there are
    any."""
    if data.evaluation is None:
        return
    shared = overlap(found, data.evaluation)
    data.overlap[use] = shared
    if shared:
        what = "texts" if loaded.inspection.image is None else "images"
        loaded.observer.log(
            f"{shared} of {len(data.evaluation.texts)} evaluation {what} are also {use} {what}: "
            "the quality measured on them is too good."
        )
