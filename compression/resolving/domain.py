"""The text of a domain beside the general text: which jobs read it, and whether it suits. No torch."""

from __future__ import annotations

from compression.data_uses import DomainEvaluation
from compression.resolving.data import CLASSIFIERS, check_holdout, check_labels, judges, read_to_learn
from compression.resolving.draft import Draft


def resolve_domain_calibration(draft: Draft, *, needed: bool) -> None:
    """Fills in `calibration.domain`; refuses it where nothing reads it, and refuses that it is missing."""
    calibration, recipe = draft.specification.calibration, draft.recipe
    assert calibration is not None
    domain = calibration.domain
    if domain is None:
        if needed:
            draft.refuse(
                "/calibration/domain",
                f"{recipe.name} with these options weighs a domain against general text: beside "
                'calibration.dataset (general) give "domain": {"dataset": "dst_..."} with the text of the '
                "domain.",
                "domain_missing",
            )
        return
    if not needed:
        draft.refuse(
            "/calibration/domain",
            f"{recipe.name} with these options reads one calibration dataset, so a second one would change "
            "nothing: leave it out, or choose the criterion 'd-pruner'. To see quality on the domain apart, "
            "give evaluation.domain.",
            "domain_unused",
        )
        return
    draft.dataset("/calibration/domain/dataset", domain.dataset)
    if domain.dataset == calibration.dataset:
        draft.refuse(
            "/calibration/domain/dataset",
            "This is the dataset of the general text too: the domain needs text of its own.",
            "domain_not_apart",
        )
    if domain.sequence_length:
        draft.length("/calibration/domain/sequence_length", domain.sequence_length)
    names = ("samples", "sequence_length", "seed", "batch_size")
    given = {name: getattr(domain, name) for name in names}
    filled = {name: getattr(calibration, name) if value is None else value for name, value in given.items()}
    draft.update("calibration", domain=domain.model_copy(update=filled))


def resolve_domain_evaluation(draft: Draft) -> None:
    """Fills in `evaluation.domain`, by default from a fifth held out of the domain's calibration set."""
    specification = draft.specification
    calibration, evaluation = specification.calibration, specification.evaluation
    domain = evaluation.domain
    own = calibration.domain.dataset if calibration and calibration.domain else None
    name = (domain and domain.dataset) or (own if own and judges(draft, own) else None)
    if name is None:
        if domain is not None:
            draft.refuse("/evaluation/domain/dataset", _why_missing(own), "evaluation_data_missing")
        return
    if domain is None and evaluation.dataset is None:
        return
    if domain is not None and domain.dataset:
        draft.dataset("/evaluation/domain/dataset", name)
    if draft.inspection.task in CLASSIFIERS:
        check_labels(draft, "/evaluation/domain/dataset", name)
    if not _apart(draft, name):
        return
    shared = name in read_to_learn(specification)
    check_holdout(draft, "/evaluation/domain", name, shared=shared, stated=domain.holdout if domain else None)
    length = (domain and domain.sequence_length) or evaluation.sequence_length
    if domain and domain.sequence_length:
        draft.length("/evaluation/domain/sequence_length", domain.sequence_length)
    resolved = {
        "dataset": name,
        "samples": (domain and domain.samples) or evaluation.samples,
        "sequence_length": length,
        "holdout": shared,
    }
    draft.update("evaluation", domain=DomainEvaluation(**resolved))


def _why_missing(own: str | None) -> str:
    if own is None:
        return "Quality on a domain needs its text: give evaluation.domain.dataset."
    return f"{own} has no labels to judge by: give evaluation.domain.dataset a dataset with labels."


def _apart(draft: Draft, name: str) -> bool:
    """Whether the general quality is judged too, and on other text; otherwise with a fault."""
    general = draft.specification.evaluation.dataset
    if general is None:
        draft.refuse(
            "/evaluation/dataset",
            "Quality on a domain is reported beside that on general text: give evaluation.dataset too.",
            "evaluation_data_missing",
        )
    elif general == name:
        draft.refuse(
            "/evaluation/domain/dataset" if draft.specification.evaluation.domain else "/evaluation/dataset",
            f"The general quality is judged on {name} too, so nothing would be apart: evaluation.dataset is "
            "for general text.",
            "domain_not_apart",
        )
    return general is not None and general != name
