"""Fills the defaults of a job on a graph (ONNX) and refuses what cannot work on one. No torch.

Which channels there are, and how many multiply-accumulates, only the job sees; so a target beyond reach fails
the job, with what can be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression import options
from compression.anatomy.graph import BLOCK, CHANNEL, FORMAT
from compression.preprocessing import Preprocessing
from compression.resolving.data import check_gates, resolve_evaluation, resolve_recovery
from compression.resolving.draft import Draft
from compression.resolving.graph_weights import check_weights, reads_data, resolve_structure, single_weights
from compression.resolving.images import resolve_preprocessing
from compression.specification import quantity

TRAINING = ("batch_size", "learning_rate", "loss", "penalty", "rounds", "steps")
"""Options that only schedules that train look at."""
_HOW = (
    '"preprocessing": {"size": {"height": H, "width": W}, "rescale_factor": 1/255, "image_mean": [...], '
    '"image_std": [...]}'
)


def resolve_graph(draft: Draft) -> None:
    """Resolves a specification for a graph."""
    _check_operators(draft)
    _check_structure(draft)
    _resolve_options(draft)
    _resolve_data(draft)
    _check_recovery(draft)
    _resolve_output(draft)
    if draft.specification.queue == "gpu":
        draft.refuse("/queue", "Graphs are pruned on processors: leave it out.", "option_conflict")
    if not draft.faults:
        _check_target(draft)


def _check_operators(draft: Draft) -> None:
    for each in draft.inspection.not_prunable:
        draft.refuse(
            "/model",
            f"The graph has an operator that cannot be computed here: {each['name']}, {each['reason']}. "
            "Export the model without it.",
            "operator_unknown",
        )


def _check_structure(draft: Draft) -> None:
    if single_weights(draft):
        resolve_structure(draft)
        return
    structure = draft.specification.structure
    if structure.granularity not in (None, CHANNEL):
        draft.refuse(
            "/structure/granularity",
            f"{draft.recipe.name} cuts a graph by {CHANNEL!r} alone: write that, or leave it out.",
            "granularity_unsupported",
        )
    if structure.ignore:
        draft.refuse(
            "/structure/ignore",
            "Channels go from all tensors that share them, so none can be left alone: leave it out.",
            "pattern_unsupported",
        )
    draft.update("structure", granularity=CHANNEL)


def _resolve_options(draft: Draft) -> None:
    schema, given = draft.recipe.options, draft.specification.options
    draft.faults += options.check_options(given, schema, draft.recipe.name, ["options"])
    chosen = options.with_defaults(given, schema)
    if single_weights(draft):
        draft.replace(options=chosen)
        return
    if draft.specification.target.kind == "latency":
        chosen["channel_multiple"] = _timed_multiple(draft, given, chosen["channel_multiple"])
    draft.replace(options=chosen)
    if not draft.faults:
        usual = options.with_defaults({}, schema)
        _check_schedule(draft, {name for name, value in given.items() if value != usual[name]})


def _check_schedule(draft: Draft, changed: set[str]) -> None:
    """Refuses options that mean nothing to the schedule, of those that are not as the recipe has them, and
    what cannot be met while a graph is trained."""
    name = draft.specification.options["schedule"]
    entry = next(one for one in draft.catalogue.data["graph_schedules"] if one["name"] == name)
    if entry["needs"]:
        _check_training(draft, name)
    else:
        for option in (one for one in TRAINING if one in changed):
            draft.refuse(
                f"/options/{option}",
                f"The schedule {name!r} trains nothing: leave it out, or take a schedule that trains.",
                "option_conflict",
            )
    if entry["scores"] and "criterion" in changed:
        draft.refuse(
            "/options/criterion",
            f"The schedule {name!r} scores units by itself: leave it out, or take another schedule.",
            "option_conflict",
        )


def _check_training(draft: Draft, name: str) -> None:
    if draft.specification.target.kind == "latency":
        draft.refuse(
            "/options/schedule",
            f"The schedule {name!r} aims at costs that are counted while it trains: aim at macs, parameters "
            'or bytes, or take the schedule "one-shot".',
            "option_conflict",
        )
    if draft.specification.options["data"] == "synthetic":
        draft.refuse(
            "/options/data",
            f'The schedule {name!r} learns from images: leave it out, or take the schedule "one-shot".',
            "option_conflict",
        )
    if draft.specification.options["allocation"] == "floors":
        draft.refuse(
            "/options/allocation",
            f"Floors are measured on the dense graph, and the schedule {name!r} changes it: take another "
            'allocation, or the schedule "one-shot".',
            "option_conflict",
        )


def _timed_multiple(draft: Draft, given: Mapping[str, Any], chosen: Any) -> Any:
    """Times of layers are known of multiples of a block alone: one is the default, others are refused."""
    if "channel_multiple" not in given:
        return BLOCK
    if isinstance(chosen, int) and chosen % BLOCK:
        draft.refuse(
            "/options/channel_multiple",
            f"A latency is aimed at by measured times of layers whose channels are multiples of {BLOCK}: "
            f"write such a number, or leave it out for {BLOCK}.",
            "option_conflict",
        )
    return chosen


def _resolve_data(draft: Draft) -> None:
    """Images judge a classifier of images; other graphs have no data here."""
    specification, inspection = draft.specification, draft.inspection
    calibration, evaluation = specification.calibration, specification.evaluation
    if (calibration and calibration.domain) or evaluation.domain:
        part = "/calibration/domain" if calibration and calibration.domain else "/evaluation/domain"
        draft.refuse(part, "A domain is one of text: leave it out.", "option_conflict")
        return
    needed = not draft.faults and _reads_data(draft)
    if not draft.faults and not single_weights(draft):
        _check_synthetic(draft)
    if inspection.task == "other":
        _refuse_data(draft)
        if needed:
            _refuse_looking(draft)
        return
    if needed and calibration is None:
        draft.refuse(
            "/calibration",
            f'{draft.recipe.name} with these options looks at images: add "calibration": {{"dataset": '
            '"dst_..."}.',
            "calibration_missing",
        )
    if calibration is not None:
        draft.dataset("/calibration/dataset", calibration.dataset)
        draft.no_length("/calibration/sequence_length", calibration.sequence_length)
    resolve_evaluation(draft)
    check_gates(draft)
    if specification.datasets() and inspection.preprocessing is None:
        if specification.preprocessing is None:
            draft.refuse(
                "/preprocessing",
                "The model came without a preprocessor_config.json that could be read, so nothing says how "
                f"images become its input: write {_HOW}.",
                "preprocessing_missing",
            )
            return
        _check_complete(draft, specification.preprocessing)
    resolve_preprocessing(draft)


def _refuse_looking(draft: Draft) -> None:
    alone = (
        "take a criterion of weights alone, such as group-l2, another allocation than floors, the update "
        "none and the schedule one-shot, or options.data synthetic"
    )
    if single_weights(draft):
        alone = "take a recipe of weights alone, such as magnitude"
    draft.refuse(
        "/options",
        f"{draft.recipe.name} with these options looks at images, and this model does not classify any: "
        f"{alone}.",
        "option_conflict",
    )


def _reads_data(draft: Draft) -> bool:
    """Whether what the job asks for looks at images."""
    if single_weights(draft):
        return reads_data(draft)
    chosen = draft.specification.options
    schedule = next(
        one for one in draft.catalogue.data["graph_schedules"] if one["name"] == chosen["schedule"]
    )
    return bool(schedule["needs"]) or (chosen["data"] == "images" and bool(_needs(draft)))


def _needs(draft: Draft) -> set[str]:
    """What the criterion, the update and the allocation ask of data of any kind."""
    chosen = draft.specification.options
    return {
        need
        for axis, name in (
            ("graph_criteria", "criterion"),
            ("graph_updates", "update"),
            ("graph_allocations", "allocation"),
        )
        for entry in draft.catalogue.data[axis]
        if entry["name"] == chosen[name]
        for need in entry["needs"]
    }


def _check_synthetic(draft: Draft) -> None:
    """Notes a fault where synthetic inputs cannot give what is asked for."""
    options = draft.specification.options
    if options["data"] != "synthetic":
        return
    if "labels" in _needs(draft):
        draft.refuse(
            "/options/data",
            f"The criterion {options['criterion']} follows a loss of labelled images, and synthetic inputs "
            'have no labels: write "images", or take another criterion, such as obs.',
            "option_conflict",
        )
    if options["class_weights"] == "balanced":
        draft.refuse(
            "/options/class_weights",
            'Synthetic inputs have no classes: leave it out, or write "data": "images".',
            "option_conflict",
        )
    if draft.specification.calibration is not None:
        draft.refuse(
            "/calibration",
            'With "data": "synthetic" no calibration images are read: leave it out, or write "data": '
            '"images".',
            "option_conflict",
        )


def _check_complete(draft: Draft, given: Preprocessing) -> None:
    """Notes a fault where a job leaves open what no file says: a guess would make the accuracy wrong."""
    for name, off in (("image_mean", "do_normalize"), ("image_std", "do_normalize")):
        if getattr(given, name) is None and getattr(given, off) is not False:
            draft.refuse(
                f"/preprocessing/{name}",
                f'Nothing says how the model\'s images are normalised: give {name}, or write "{off}": false.',
                "preprocessing_missing",
            )


def _refuse_data(draft: Draft) -> None:
    for pointer in draft.specification.uses():
        draft.refuse(
            pointer,
            "Data are read for graphs that classify images: one input [batch, channels, height, width] of "
            "known size, one output [batch, classes]. This model is another one: leave it out, and only "
            "costs are judged.",
            "dataset_kind_unsupported",
        )
    evaluation = draft.specification.evaluation
    if evaluation.metrics:
        draft.refuse(
            "/evaluation/metrics", "Metrics need data, which this model has none of.", "metric_unknown"
        )
    check_gates(draft)
    draft.update("evaluation", metrics=[], holdout=False)
    if draft.specification.preprocessing is not None:
        draft.refuse(
            "/preprocessing", "Leave it out: no images are read for this model.", "preprocessing_unsupported"
        )


def _check_recovery(draft: Draft) -> None:
    method, inspection = draft.specification.recovery.method, draft.inspection
    if method in draft.recoveries and method != "none":
        if inspection.task == "other":
            draft.refuse(
                "/recovery/method",
                "Graphs that classify images are recovered: one input [batch, channels, height, width] of "
                "known size, one output [batch, classes]. This model is another one: leave it out.",
                "recovery_unsupported",
            )
            return
        if method == "batchnorm" and not inspection.batch_norms:
            draft.refuse(
                "/recovery/method",
                "The graph has no BatchNormalization (exporters fold most of them into convolutions), so "
                'there are no statistics to measure anew: write "options": {"update": "moments"} instead, '
                "which does the same for those that were folded.",
                "recovery_unsupported",
            )
            return
    resolve_recovery(draft)


def _resolve_output(draft: Draft) -> None:
    output = draft.specification.output
    if "formats" in output.model_fields_set and output.formats != [FORMAT]:
        draft.refuse(
            "/output/formats",
            f'An ONNX model comes back as one: write ["{FORMAT}"], or leave it out.',
            "format_unsupported",
        )
    if output.dtype not in (None, draft.inspection.dtype):
        draft.refuse(
            "/output/dtype",
            "The tensors of a graph keep their types: leave it out.",
            "option_conflict",
        )
    if output.layout is not None:
        draft.refuse(
            "/output/layout", "Every tensor of a graph has its own width: leave it out.", "option_conflict"
        )
    draft.update("output", formats=[FORMAT], dtype=None)


def _check_target(draft: Draft) -> None:
    target = draft.specification.target
    if target.kind not in draft.recipe.targets:
        draft.refuse(
            f"/target/{target.kind}",
            f"{draft.recipe.name} cannot aim at {target.kind}; it offers: {', '.join(draft.recipe.targets)}.",
            "target_unsupported",
        )
    elif single_weights(draft):
        check_weights(draft)
    elif target.kind in ("parameters", "bytes"):
        form, amount = quantity(target.kind, target.value)
        dense = getattr(draft.inspection, target.kind)
        if form == "absolute" and amount >= dense:
            draft.refuse(
                f"/target/{target.kind}",
                f"The model has {dense:,} {target.kind} as it is: ask for less.",
                "target_unreachable",
            )
