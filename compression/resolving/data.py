"""Which data a job reads for what, and whether it suits. No torch."""

from __future__ import annotations

from compression import options
from compression.anatomy.budget import default_length
from compression.anatomy.graph import is_graph
from compression.loading.dataset_files import DatasetFacts
from compression.loading.images.classes import check_labels as check_image_labels
from compression.resolving.draft import Draft
from compression.specification import JobSpecification
from compression.suggestions import closest

METRICS: dict[str, tuple[str, ...]] = {
    "text-generation": ("perplexity", "bits_per_byte"),
    "text2text-generation": ("perplexity", "bits_per_byte"),
    "text-classification": ("accuracy",),
    "feature-extraction": ("embedding_cosine",),
    "image-classification": ("accuracy", "top5_accuracy"),
    "other": (),
}
"""The quality metrics of each task. The first is evaluated where a job names none; where models are compared
that read a text as different tokens, all are."""

CLASSIFIERS = ("text-classification", "image-classification")
"""The tasks whose evaluation needs labels."""

COSTS = ("parameters", "nonzeros", "bytes", "macs", "latency", "memory")
"""What a gate may bound besides quality."""

DOMAIN = "domain_"
"""Before the name of a metric: that metric on the text of the domain."""

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
    read = read_to_learn(specification)
    if evaluation.dataset:
        name: str | None = evaluation.dataset
        draft.dataset("/evaluation/dataset", evaluation.dataset)
    else:
        domain = calibration.domain.dataset if calibration and calibration.domain else None
        name = next((item for item in read if item != domain and judges(draft, item)), None)
    shared = name in read
    check_holdout(draft, "/evaluation", name, shared=shared, stated=evaluation.holdout)
    length = _evaluation_length(draft)
    metrics = _metrics(draft, name)
    samples = evaluation.samples or (SAMPLES.get(inspection.task, EXAMPLES) if name else None)
    draft.update(
        "evaluation", dataset=name, holdout=shared, sequence_length=length, metrics=metrics, samples=samples
    )


def _evaluation_length(draft: Draft) -> int | None:
    """Tokens of a sequence; None for images."""
    calibration, given = draft.specification.calibration, draft.specification.evaluation.sequence_length
    if draft.inspection.image is not None:
        draft.no_length("/evaluation/sequence_length", given)
        return None
    if given:
        draft.length("/evaluation/sequence_length", given)
    return given or (calibration.sequence_length if calibration else None) or default_length(draft.inspection)


def read_to_learn(specification: JobSpecification) -> list[str]:
    """The datasets that calibration and recovery read: what judges must be held out of them."""
    calibration, recovery = specification.calibration, specification.recovery
    read = [calibration.dataset] if calibration else []
    if recovery.method != "none" and recovery.dataset:
        read.append(recovery.dataset)
    if calibration and calibration.domain:
        read.append(calibration.domain.dataset)
    return read


def judges(draft: Draft, name: str) -> bool:
    """Whether a dataset that was given for something else can also judge: a classifier needs labels."""
    facts = draft.datasets.get(name)
    if facts is None or (facts.kind == "image") != (draft.inspection.image is not None):
        return False
    return draft.inspection.task not in CLASSIFIERS or facts.labels is not None


def check_holdout(draft: Draft, part: str, name: str | None, *, shared: bool, stated: bool | None) -> None:
    """Notes a fault if what was stated of the hold-out is not so, or if there is too little to hold out.

    `part` is the pointer of the evaluation, `shared` whether the job also learns from its dataset.
    """
    if stated is not None and stated != shared:
        why = (
            "the evaluation reads a dataset that the calibration or the recovery reads too, so a fifth is "
            "held out"
            if shared
            else "the evaluation has a dataset of its own, so nothing is held out"
        )
        draft.refuse(f"{part}/holdout", f"Leave it out: {why}.", "holdout_conflict")
    facts = draft.datasets.get(name) if name else None
    if shared and facts is not None and facts.rows < HELD_OUT_ROWS:
        word = "image" if facts.kind == "image" else "document"
        documents = f"{facts.rows} {word}{'s' if facts.rows > 1 else ''}"
        draft.refuse(
            f"{part}/dataset",
            f"A fifth of {name} must be held out for the evaluation, but it has only {documents}: give a "
            "dataset of at "
            f"least {HELD_OUT_ROWS}, or another {part[1:].replace('/', '.')}.dataset.",
            "dataset_too_small",
        )


def _metrics(draft: Draft, name: str | None) -> list[str]:
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
                f"Metrics need {draft.data_kind}: give evaluation.dataset.",
                "evaluation_data_missing",
            )
        return []
    if inspection.task in CLASSIFIERS:
        check_labels(draft, "/evaluation/dataset", name)
    usual = known if draft.vocabulary else known[:1]
    return list(given if given is not None else usual)


def check_labels(draft: Draft, pointer: str, name: str) -> None:
    """Notes a fault if a classifier cannot be judged on a dataset: its rows need labels that it knows."""
    facts = draft.datasets.get(name)
    if facts is None:
        return
    if facts.labels is None:
        where = "its lines need a 'label' beside 'text'"
        if facts.kind == "image":
            where = "images need a column 'label', an array 'labels', or a folder for each class"
        draft.refuse(
            pointer, f"{name} has no labels, so accuracy cannot be counted: {where}.", "labels_missing"
        )
    else:
        _check_labels(draft, pointer, name, facts)


def _check_labels(draft: Draft, pointer: str, name: str, facts: DatasetFacts) -> None:
    """Labels are names of the model's classes, or their numbers."""
    names = draft.inspection.labels or ()
    if facts.kind == "image":
        try:
            check_image_labels(facts.labels, names)
        except ValueError as error:
            draft.refuse(pointer, f"{name}: {error}.", "labels_unknown")
        return
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


def check_gates(draft: Draft) -> None:
    """Notes a fault for every gate on what is not known or not measured; the evaluation is filled in."""
    evaluation = draft.specification.evaluation
    metrics = evaluation.metrics or []
    on_domain = [DOMAIN + name for name in METRICS[draft.inspection.task]]
    known = (*METRICS[draft.inspection.task], *on_domain, *COSTS)
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
        elif gate.metric in on_domain and evaluation.domain is None:
            draft.refuse(
                pointer,
                f"{gate.metric} is not evaluated: give evaluation.domain a dataset.",
                "metric_not_evaluated",
            )
        elif gate.metric not in COSTS and gate.metric.removeprefix(DOMAIN) not in metrics:
            draft.refuse(
                pointer,
                f"{gate.metric} is not evaluated: give evaluation.dataset and name it in evaluation.metrics.",
                "metric_not_evaluated",
            )


def resolve_recovery(draft: Draft) -> None:
    """Fills in the recovery: its dataset and its options."""
    specification = draft.specification
    recovery = specification.recovery
    offered = draft.recoveries
    schema = offered.get(recovery.method)
    if schema is None:
        which = "graphs" if is_graph(draft.inspection) else "this kind of model"
        draft.refuse(
            "/recovery/method",
            f"There is no recovery {recovery.method!r} of {which}; there are: {', '.join(sorted(offered))}.",
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
            f"{recovery.method} learns from {draft.data_kind}: give recovery.dataset or calibration.dataset.",
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
    elif draft.inspection.task in CLASSIFIERS:
        if facts.labels is None:
            draft.refuse(
                pointer,
                f"The task's loss needs labels, and {name} has none: use 'distillation'.",
                "labels_missing",
            )
        else:
            _check_labels(draft, "/recovery/dataset", name, facts)
