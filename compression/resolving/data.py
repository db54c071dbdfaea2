"""Which text a job reads for what, and whether it suits. No torch."""

from __future__ import annotations

from compression import options
from compression.anatomy.budget import default_length
from compression.loading.dataset_files import DatasetFacts
from compression.resolving.draft import Draft
from compression.suggestions import closest

METRICS: dict[str, tuple[str, ...]] = {
    "text-generation": ("perplexity",),
    "text2text-generation": ("perplexity",),
    "text-classification": ("accuracy",),
    "feature-extraction": ("embedding_cosine",),
    "image-classification": ("accuracy",),
}
"""The quality metrics of each task."""

COSTS = ("parameters", "nonzeros", "bytes", "macs", "latency", "memory")
"""What a gate may bound besides quality."""

MEASURED = ("latency", "memory")
HELD_OUT_ROWS = 5

SAMPLES = {"text-generation": 512, "text2text-generation": 512}
"""Sequences that judge a model unless `evaluation.samples` says otherwise: quality costs minutes on a CPU."""
EXAMPLES = 2048
"""The same for the other tasks, in examples."""


def resolve_evaluation(draft: Draft) -> None:
    """Fills in the evaluation: its dataset, whether it is held out, length and metrics."""
    specification, inspection = draft.specification, draft.inspection
    evaluation, calibration = specification.evaluation, specification.calibration
    read = [calibration.dataset] if calibration else []
    if specification.recovery.method != "none" and specification.recovery.dataset:
        read.append(specification.recovery.dataset)
    if evaluation.dataset:
        name: str | None = evaluation.dataset
        facts = draft.dataset("/evaluation/dataset", evaluation.dataset)
    else:
        name = next((item for item in read if _judges(draft, item)), None)
        facts = draft.datasets.get(name) if name else None
    shared = name in read
    _check_holdout(draft, name, facts, shared)
    length = evaluation.sequence_length or (calibration.sequence_length if calibration else None)
    length = length or default_length(inspection)
    if evaluation.sequence_length:
        draft.length("/evaluation/sequence_length", length)
    metrics = _metrics(draft, name, facts)
    samples = evaluation.samples or (SAMPLES.get(inspection.task, EXAMPLES) if name else None)
    draft.update(
        "evaluation", dataset=name, holdout=shared, sequence_length=length, metrics=metrics, samples=samples
    )
    _check_gates(draft, metrics)


def _judges(draft: Draft, name: str) -> bool:
    """Whether a dataset that was given for something else can also judge: a classifier needs labels."""
    facts = draft.datasets.get(name)
    return facts is not None and (draft.inspection.task != "text-classification" or facts.labels is not None)


def _check_holdout(draft: Draft, name: str | None, facts: DatasetFacts | None, shared: bool) -> None:
    evaluation = draft.specification.evaluation
    if evaluation.holdout is not None and evaluation.holdout != shared:
        why = (
            "the evaluation reads a dataset that the calibration or the recovery reads too, so a fifth is "
            "held out"
            if shared
            else "the evaluation has a dataset of its own, so nothing is held out"
        )
        draft.refuse("/evaluation/holdout", f"Leave it out: {why}.", "holdout_conflict")
    if shared and facts is not None and facts.rows < HELD_OUT_ROWS:
        documents = f"{facts.rows} document{'s' if facts.rows > 1 else ''}"
        draft.refuse(
            "/evaluation/dataset",
            f"A fifth of {name} must be held out for the evaluation, but it has only {documents}: give a "
            "dataset of at "
            f"least {HELD_OUT_ROWS}, or another evaluation.dataset.",
            "dataset_too_small",
        )


def _metrics(draft: Draft, name: str | None, facts: DatasetFacts | None) -> list[str]:
    inspection = draft.inspection
    known = METRICS[inspection.task]
    given = draft.specification.evaluation.metrics
    for index, metric in enumerate(given or []):
        if metric not in known:
            draft.refuse(
                f"/evaluation/metrics/{index}",
                f"{metric!r} is no metric for {inspection.task}: {closest(metric, known)}.",
                "metric_unknown",
            )
    if name is None:
        if given:
            draft.refuse(
                "/evaluation/metrics",
                "Metrics need text: give evaluation.dataset.",
                "evaluation_data_missing",
            )
        return []
    if inspection.task == "text-classification" and facts is not None:
        if facts.labels is None:
            draft.refuse(
                "/evaluation/dataset",
                f"{name} has no labels, so accuracy cannot be counted: its lines need a 'label' beside "
                "'text'.",
                "labels_missing",
            )
        else:
            _check_labels(draft, "/evaluation/dataset", name, facts)
    return list(given if given is not None else known)


def _check_labels(draft: Draft, pointer: str, name: str, facts: DatasetFacts) -> None:
    """Labels are names of the model's classes, or their numbers."""
    names = draft.inspection.labels or ()
    for label in facts.labels or []:
        if isinstance(label, int) and not isinstance(label, bool):
            if label < len(names):
                continue
            draft.refuse(
                pointer,
                f"{name} has the label {label}, but the model's classes are 0 to {len(names) - 1}.",
                "labels_unknown",
            )
            return
        if label not in names:
            draft.refuse(
                pointer,
                f"{name} has the label {str(label)[:80]!r}, which is no class of the model: "
                f"{closest(str(label), names)}. Use these names or their numbers.",
                "labels_unknown",
            )
            return


def _check_gates(draft: Draft, metrics: list[str]) -> None:
    evaluation = draft.specification.evaluation
    known = (*METRICS[draft.inspection.task], *COSTS)
    for index, gate in enumerate(evaluation.gates):
        pointer = f"/evaluation/gates/{index}/metric"
        if gate.metric not in known:
            draft.refuse(
                pointer,
                f"{gate.metric[:80]!r} cannot be gated: {closest(gate.metric, known)}.",
                "metric_unknown",
            )
        elif gate.metric in MEASURED and gate.metric not in evaluation.measure:
            draft.refuse(
                pointer,
                f"{gate.metric} is not measured: add it to evaluation.measure.",
                "metric_not_measured",
            )
        elif gate.metric not in COSTS and gate.metric not in metrics:
            draft.refuse(
                pointer,
                f"{gate.metric} is not evaluated: give evaluation.dataset and name it in evaluation.metrics.",
                "metric_not_evaluated",
            )


def resolve_recovery(draft: Draft) -> None:
    """Fills in the recovery: its dataset and its options."""
    specification = draft.specification
    recovery = specification.recovery
    schema = draft.catalogue.recoveries.get(recovery.method)
    if schema is None:
        draft.refuse(
            "/recovery/method",
            f"There is no recovery {recovery.method!r}: "
            f"{closest(recovery.method, draft.catalogue.recoveries)}.",
            "recovery_unknown",
        )
        return
    draft.faults += options.check_options(
        recovery.options, schema, f"recovery {recovery.method}", ["recovery", "options"]
    )
    filled = options.with_defaults(recovery.options, schema)
    if recovery.method == "none":
        draft.update("recovery", options=filled)
        return
    name = recovery.dataset or (specification.calibration.dataset if specification.calibration else None)
    if name is None:
        draft.refuse(
            "/recovery/dataset",
            f"{recovery.method} learns from text: give recovery.dataset or calibration.dataset.",
            "recovery_data_missing",
        )
        return
    facts = draft.dataset("/recovery/dataset", name) if recovery.dataset else draft.datasets.get(name)
    if filled.get("loss") == "task" and facts is not None:
        _check_task_loss(draft, name, facts)
    draft.update("recovery", dataset=name, options=filled)


def _check_task_loss(draft: Draft, name: str, facts: DatasetFacts) -> None:
    pointer = "/recovery/options/loss"
    if draft.inspection.task == "feature-extraction":
        draft.refuse(
            pointer, "A model without a head has no task to learn: use 'distillation'.", "option_conflict"
        )
    elif draft.inspection.task == "text-classification":
        if facts.labels is None:
            draft.refuse(
                pointer,
                f"The task's loss needs labels, and {name} has none: use 'distillation'.",
                "labels_missing",
            )
        else:
            _check_labels(draft, "/recovery/dataset", name, facts)
