"""The datasets of a job as batches, and what they share."""

from __future__ import annotations

import math
from typing import Any

from compression.anatomy.budget import default_length, stated_length
from compression.anatomy.graph import is_graph
from compression.loading.data import DataPlan, Sequences, TrainingRows, overlap
from compression.loading.images.plan import ImagePlan, Images, TrainingImages
from compression.loading.images.streaming import StreamedImages
from compression.preprocessing import of_model
from compression.recovery.registry import load_all
from compression.stages.job import Data, Loaded

Used = Sequences | TrainingRows | Images | TrainingImages | StreamedImages


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
        data.evaluation = judging(plan, loaded, spec.evaluation.dataset, spec.evaluation.samples, length)
    domain = spec.evaluation.domain
    if domain is not None and domain.dataset is not None:
        length = domain.sequence_length or evaluation_length(loaded)
        data.domain_evaluation = judging(plan, loaded, domain.dataset, domain.samples, length)
        if data.evaluation is not None:
            _note(loaded, data.domain_overlap, "evaluation", data.evaluation, data.domain_evaluation)
    return data


def judging(
    plan: DataPlan | ImagePlan, loaded: Loaded, dataset: str, samples: int | None, length: int
) -> Sequences | Images:
    """Batches to judge a model by."""
    if isinstance(plan, ImagePlan):
        return plan.evaluation(dataset, samples, length)
    count_bytes = "bits_per_byte" in (loaded.specification.evaluation.metrics or ())
    return plan.evaluation(dataset, samples, length, count_bytes=count_bytes)


def held_out_datasets(loaded: Loaded) -> list[str]:
    """The datasets of which a part is held out for an evaluation."""
    evaluation = loaded.specification.evaluation
    judged = [part for part in (evaluation, evaluation.domain) if part is not None]
    return [part.dataset for part in judged if part.dataset is not None and part.holdout]


def open_plan(loaded: Loaded) -> DataPlan | ImagePlan:
    """What reads the job's datasets: text or images."""
    spec, image = loaded.specification, loaded.inspection.image
    config, datasets = loaded.admission.config, loaded.request.datasets
    held_out = held_out_datasets(loaded)
    if image is not None:
        how = spec.preprocessing or of_model(*image[1:])
        if is_graph(loaded.inspection):
            config = {"id2label": dict(enumerate(loaded.inspection.labels or ()))}
        return ImagePlan(config, image[0], how, datasets, held_out=held_out)
    return DataPlan(loaded.folder, config, loaded.admission.task, datasets, held_out=held_out)


def evaluation_length(loaded: Loaded) -> int:
    """Tokens of an evaluation sequence."""
    return stated_length(loaded.specification, loaded.inspection)


def calibration_length(loaded: Loaded) -> int:
    """Tokens of a calibration sequence."""
    calibration = loaded.specification.calibration
    given = calibration.sequence_length if calibration else None
    return given or default_length(loaded.inspection)


def calibrate(loaded: Loaded, data: Data) -> None:
    """The calibration batches, general and of a domain, as far as the specification names data for them."""
    spec = loaded.specification.calibration
    if spec is None or data.plan is None:
        return
    length = calibration_length(loaded)
    data.calibration = data.plan.calibration(spec.dataset, spec.samples, length, spec.seed, spec.batch_size)
    _told(loaded, data, "calibration", data.calibration, spec.samples, length)
    if spec.domain is not None:
        filled = {name: value for name, value in spec.domain.model_dump().items() if value is not None}
        own = spec.model_copy(update={"sequence_length": length, **filled})
        length = own.sequence_length or length
        data.domain = data.plan.calibration(own.dataset, own.samples, length, own.seed, own.batch_size)
        _told(loaded, data, "domain_calibration", data.domain, own.samples, length)


def _told(loaded: Loaded, data: Data, use: str, found: Sequences | Images, samples: int, length: int) -> None:
    if found.sequences < samples:
        what = "images" if isinstance(found, Images) else f"sequences of up to {length} tokens"
        loaded.observer.log(
            f"The {use.replace('_', ' ')} dataset gives {found.sequences} {what}, "
            f"not the {samples} asked for."
        )
    note_overlap(loaded, data, use, found)


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


def note_overlap(loaded: Loaded, data: Data, use: str, found: Used) -> None:
    """Count the texts or images that a use of data shares with the evaluations, and say so when there are
    any."""
    if data.evaluation is not None:
        _note(loaded, data.overlap, use, found, data.evaluation)
    if data.domain_evaluation is not None:
        _note(loaded, data.domain_overlap, use, found, data.domain_evaluation)


def _note(loaded: Loaded, counts: dict[str, int], use: str, found: Used, judge: Sequences | Images) -> None:
    shared = counts[use] = overlap(found, judge)
    what = "texts" if loaded.inspection.image is None else "images"
    if shared and use == "evaluation":
        loaded.observer.log(
            f"{shared} of {len(judge.texts)} evaluation {what} of the domain are also general evaluation "
            f"{what}: the two qualities are not quite apart."
        )
    elif shared:
        loaded.observer.log(
            f"{shared} of {len(judge.texts)} evaluation {what} are also {use.replace('_', ' ')} {what}: "
            "the quality measured on them is too good."
        )
