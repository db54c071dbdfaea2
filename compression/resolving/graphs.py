"""Fills the defaults of a job on a graph (ONNX) and refuses what cannot work on one. No torch.

Which channels there are, and how many multiply-accumulates, only the job sees; so a target beyond reach fails
the job, with what can be reached.
"""

from __future__ import annotations

from compression import options
from compression.anatomy.graph import CHANNEL, FORMAT
from compression.preprocessing import Preprocessing
from compression.resolving.data import check_gates, resolve_evaluation, resolve_recovery
from compression.resolving.draft import Draft
from compression.resolving.graph_weights import check_weights, reads_data, resolve_structure, single_weights
from compression.resolving.images import resolve_preprocessing
from compression.specification import quantity

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
    draft.replace(options=options.with_defaults(given, schema))


def _resolve_data(draft: Draft) -> None:
    """Images judge a classifier of images; other graphs have no data here."""
    specification, inspection = draft.specification, draft.inspection
    calibration, evaluation = specification.calibration, specification.evaluation
    if (calibration and calibration.domain) or evaluation.domain:
        part = "/calibration/domain" if calibration and calibration.domain else "/evaluation/domain"
        draft.refuse(part, "A domain is one of text: leave it out.", "option_conflict")
        return
    needed = not draft.faults and _reads_data(draft)
    if inspection.task == "other":
        _refuse_data(draft)
        if needed:
            weights_alone = "take a criterion of weights alone, such as group-l2, and the update none"
            if single_weights(draft):
                weights_alone = "take a recipe of weights alone, such as magnitude"
            draft.refuse(
                "/options",
                f"{draft.recipe.name} with these options looks at images, and this model does not classify "
                f"any: {weights_alone}.",
                "option_conflict",
            )
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


def _reads_data(draft: Draft) -> bool:
    """Whether the criterion or the update looks at data."""
    if single_weights(draft):
        return reads_data(draft)
    chosen = draft.specification.options
    return any(
        entry["needs"]
        for axis, name in (("graph_criteria", "criterion"), ("graph_updates", "update"))
        for entry in draft.catalogue.data[axis]
        if entry["name"] == chosen[name]
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
    recovery = draft.specification.recovery
    if recovery.method != "none":
        draft.refuse(
            "/recovery/method",
            f"Graphs are not trained yet, so {recovery.method!r} is impossible: leave it out.",
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
