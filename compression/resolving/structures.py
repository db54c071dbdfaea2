"""Whether a target can be met by removing neurons, heads, experts or hidden channels, and by what. No
torch."""

from __future__ import annotations

from compression.anatomy.families import family_of
from compression.anatomy.structures import GRANULARITIES, Structure, unit_word
from compression.anatomy.widths import (
    MULTIPLES,
    achieved,
    choose,
    counts,
    default_multiple,
    dense_figure,
    figure,
    largest,
    smallest,
    structures,
)
from compression.resolving.draft import Draft
from compression.resolving.hidden import check_hidden
from compression.resolving.latency import check_latency
from compression.resolving.layout import check_budget, is_varied
from compression.specification import quantity


def check_structures(draft: Draft) -> None:
    """Notes a fault if no numbers of units meet the target. Also fills the multiples that were
    left out."""
    found = structures(draft.specification, draft.inspection)
    options = dict(draft.specification.options)
    for one in found:
        if MULTIPLES[one.kind] not in draft.given_options:
            options[MULTIPLES[one.kind]] = default_multiple(one, draft.specification.queue)
    draft.replace(options=options)
    varied = is_varied(draft)
    if draft.specification.target.kind == "latency":
        check_latency(draft)
    elif varied:
        check_budget(draft)
    if varied:
        return
    for one in found:
        if len(counts(one, draft.specification)) == 1:
            _refuse_multiple(draft, one)
    if draft.specification.target.kind == "latency":
        return
    if draft.faults or choose(draft.specification, draft.inspection) is not None:
        return
    target = draft.specification.target
    draft.refuse(
        f"/target/{target.kind}",
        f"{_offers(draft, found)}, and a target of {target.value} asks for {_asked(draft)}. "
        f"Reachable: {_reachable(draft)}.{_hint(draft)}",
        "target_unreachable",
    )


def check_kinds(draft: Draft) -> None:
    """Notes a fault for a criterion and for every update that is not for the units that go."""
    granularity, chosen = draft.specification.structure.granularity or "", draft.specification.options
    kinds = set(GRANULARITIES[granularity])
    picked = [("criterion", "structure_criteria", chosen.get("criterion"))]
    picked += [
        (f"update/{place}", "structure_updates", name) for place, name in enumerate(chosen.get("update", []))
    ]
    for pointer, axis, name in picked:
        entries = {entry["name"]: kinds.issubset(entry["kinds"]) for entry in draft.catalogue.data[axis]}
        if name not in entries or entries[name]:
            continue
        able = ", ".join(other for other, fits in entries.items() if fits)
        what = " and ".join(f"{unit_word(kind)}s" for kind in GRANULARITIES[granularity])
        hint = f"choose one of {able}" if able else "leave it out"
        draft.refuse(f"/options/{pointer}", f"{name} is not for {what}: {hint}.", "option_conflict")
    _check_clusters(draft)
    _check_sets(draft)
    check_hidden(draft)


def _check_sets(draft: Draft) -> None:
    """Notes a fault for more sets of calibration data than sequences, or for units of another kind."""
    sets, calibration = draft.specification.options["calibration_sets"], draft.specification.calibration
    if sets > 1 and draft.specification.structure.granularity in ("expert", "hidden"):
        why = "Sets of calibration data choose neurons and heads, nothing else: write 1 or leave it out."
    elif sets > 1 and (equal := family_of(draft.inspection.architecture).keeps_equal):
        why = f"{equal}, and sets of calibration data are not compared there: write 1 or leave it out."
    elif calibration is not None and sets > calibration.samples:
        why = f"There are fewer calibration sequences ({calibration.samples}): lower it, or raise samples."
    else:
        return
    draft.refuse("/options/calibration_sets", why, "option_conflict")


def _check_clusters(draft: Draft) -> None:
    """Notes a fault for every update that needs clusters of units where the criterion makes none."""
    chosen, data = draft.specification.options, draft.catalogue.data
    makers = [entry["name"] for entry in data["structure_criteria"] if entry["clusters"]]
    takers = {entry["name"] for entry in data["structure_updates"] if entry["clusters"]}
    for place, name in enumerate(chosen.get("update", [])):
        if name in takers and chosen.get("criterion") not in makers:
            draft.refuse(
                f"/options/update/{place}",
                f"{name} works on clusters, which {chosen.get('criterion')} does not make: choose the "
                f"criterion {' or '.join(makers)}, or leave it out.",
                "option_conflict",
            )


def _refuse_multiple(draft: Draft, one: Structure) -> None:
    option = MULTIPLES[one.kind]
    draft.refuse(
        f"/options/{option}",
        f"Of {one.count} {unit_word(one.kind)}s a layer, no smaller number that this model can have is a "
        f"multiple of {draft.specification.options[option]}: lower it.",
        "option_conflict",
    )


def _offers(draft: Draft, found: list[Structure]) -> str:
    parts = []
    for one in found:
        steps = counts(one, draft.specification)
        some = (
            ", ".join(map(str, steps[:-1])) if len(steps) < 10 else f"{steps[0]}, {steps[1]}, ... {steps[-2]}"
        )
        parts.append(f"of {one.count} {unit_word(one.kind)}s {some} may stay")
    return f"In every layer, {' and '.join(parts)}"


def _asked(draft: Draft) -> str:
    fewest = smallest(draft.specification, draft.inspection)
    kind = draft.specification.target.kind
    if kind == "sparsity":
        most = achieved(draft.specification, draft.inspection, fewest)
        return "more" if (draft.specification.target.sparsity or 0.0) > most else "less than one step"
    return "less than that leaves"


def _hint(draft: Draft) -> str:
    if draft.specification.structure.granularity != "expert" or draft.specification.target.kind != "macs":
        return ""
    return (
        " A token takes as many experts as before, so only rows of the router are saved: aim at sparsity, "
        "parameters or bytes."
    )


def _reachable(draft: Draft) -> str:
    specification, inspection = draft.specification, draft.inspection
    fewest, most = smallest(specification, inspection), largest(specification, inspection)
    kind = specification.target.kind
    if kind == "sparsity":
        low, high = (achieved(specification, inspection, widths) for widths in (most, fewest))
        return f"{round(low, 4)} to {round(high, 4)}"
    least = figure(specification, inspection, fewest)
    if quantity(kind, specification.target.value)[0] == "ratio":
        dense = dense_figure(specification, inspection)
        return f"ratios from {-(-least * 10_000 // dense) / 10_000} on"
    return f"{least:,} {kind} and more"
