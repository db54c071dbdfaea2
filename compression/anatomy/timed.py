"""From a target to widths or a number of layers, where the target may be a latency: then through a table of
measured times. No torch.

Of a latency as of parameters, macs and bytes, the most is kept that does not take longer.
"""

from __future__ import annotations

from compression.anatomy.budget import layers_to_remove
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import Timing
from compression.anatomy.structures import Widths
from compression.anatomy.unit_budget import UnitBudget, possible, unit_budget
from compression.anatomy.widths import choose, counts, pick, smallest, structures
from compression.specification import JobSpecification

LATENCY = "latency"
NANOSECONDS = 1_000_000_000


class TimesMissing(ValueError):
    """A target of latency was to be met without a table."""


def _known(timing: Timing | None) -> Timing:
    if timing is None:
        raise TimesMissing("a latency needs a table of measured times")
    return timing


def target_widths(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None = None
) -> dict[str, int] | None:
    """How many units of each kind stay in every layer; see `widths.choose`. Raises TimesMissing."""
    if specification.target.kind != LATENCY:
        return choose(specification, inspection)
    known, found = _known(timing), structures(specification, inspection)
    if not found or not all(one.kind in known.result.levels for one in found):
        return None
    fine = found[0]

    def figures(widths: Widths) -> dict[int, float]:
        return {
            n: known.result.seconds(inspection.layers, {**widths, fine.kind: n})
            for n in counts(fine, specification)
        }

    return pick(specification, found, known.goal(specification, inspection), figures, nearest=False)


def target_layers(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None = None
) -> int | None:
    """How many layers must go; see `budget.layers_to_remove`. Raises TimesMissing."""
    if specification.target.kind != LATENCY:
        return layers_to_remove(specification, inspection)
    known = _known(timing)
    goal = known.goal(specification, inspection)
    for removed in range(1, inspection.layers):
        if known.result.seconds(inspection.layers - removed) <= goal:
            return removed
    return None


def target_budget(
    specification: JobSpecification, inspection: Inspection, timing: Timing | None = None
) -> UnitBudget:
    """What the units of all layers may cost together; see `unit_budget`. Of a latency in nanoseconds: the
    time of a layer is that of the whole one less what each kind saves, so the times of its kinds add up.
    Raises TimesMissing."""
    if specification.target.kind != LATENCY:
        return unit_budget(specification, inspection)
    known = _known(timing)
    found, layers = structures(specification, inspection), inspection.layers
    table = known.result
    # A nanosecond for each unit more: those that cost nothing measurable must not go for nothing.
    curves: dict[str, list[int]] = {
        one.kind: [round(NANOSECONDS * table.level(one.kind, n)) + n for n in range(one.count + 1)]
        for one in found
    }
    steps: dict[str, list[int]] = {one.kind: possible(one, specification) for one in found}
    whole = layers * sum(curve[-1] for curve in curves.values())
    least = layers * sum(curves[kind][numbers[0]] for kind, numbers in steps.items())
    excess = known.goal(specification, inspection) - table.seconds(layers)
    return UnitBudget(
        {kind: curve[-1] // (len(curve) - 1) for kind, curve in curves.items()},
        steps,
        int(whole + NANOSECONDS * excess),
        whole,
        least,
        curves,
    )


def fastest(
    specification: JobSpecification, inspection: Inspection, timing: Timing, layers: int = 1
) -> float:
    """Seconds of the smallest result: with the fewest units that may stay, or with so many layers."""
    if specification.structure.granularity == "layer":
        return timing.result.seconds(layers)
    return timing.result.seconds(inspection.layers, smallest(specification, inspection))
