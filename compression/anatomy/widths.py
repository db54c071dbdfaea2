"""From a target to numbers of neurons, heads, experts or hidden channels, the same in every layer. Exact, and
no torch.

Sparsity is a fraction of the parameters (weights and biases) that belong to the units of the granularity;
where hidden channels go, embeddings, last norm and head are theirs too. A head that the job unties counts
among the parameters, not for the sparsity; so do weights on skip connections. Parameters,
multiply-accumulates and bytes are linear in each of the numbers (with those weights quadratic in the width),
so they are found from one unit less each. Of experts, a token takes as many as before: only the
rows of the router change what is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from compression.anatomy import count_macs
from compression.anatomy.budget import stated_length, weight_bytes
from compression.anatomy.hidden_width import (
    HIDDEN,
    owned,
    subject,
    together,
    turned_by_layer,
    with_hidden,
    with_skips,
)
from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.slices import expert_of
from compression.anatomy.structures import COLUMNS, GRANULARITIES, ROWS, Structure, Widths, plain
from compression.specification import JobSpecification, quantity

MULTIPLES = {
    "neuron": "neuron_multiple",
    "head": "head_multiple",
    "expert": "expert_multiple",
    "hidden": "hidden_multiple",
}
NEURON_MULTIPLE = 8
GPU_MULTIPLE = 64
# Narrower feed-forwards and residual streams than so many multiples are rounded to single units instead.
FEWEST_STEPS = 4


def structures(specification: JobSpecification, inspection: Inspection) -> list[Structure]:
    """The kinds of units that the job removes."""
    kinds = GRANULARITIES[specification.structure.granularity or ""]
    known = {one.kind: one for one in inspection.structures}
    return [known[kind] for kind in kinds if kind in known]


def counts(structure: Structure, specification: JobSpecification) -> list[int]:
    """The numbers of units that may stay, ascending, all of them last."""
    multiple = int(specification.options.get(MULTIPLES[structure.kind], 1))
    # The packaged config takes any width, whatever the stock one refuses.
    listed = () if turned_by_layer(specification) else structure.counts
    possible = listed or range(multiple, structure.count, multiple)
    return [n for n in possible if n % multiple == 0 and n < structure.count] + [structure.count]


def default_multiple(structure: Structure, queue: str) -> int:
    """The multiple of a kind where the job says none: on a GPU, whose tiles are wider, that of GPUs as long
    as it leaves FEWEST_STEPS widths."""
    fitting = [NEURON_MULTIPLE, *([GPU_MULTIPLE] if queue == "gpu" else [])]
    units = structure.count if structure.kind in ("neuron", "hidden") else 0
    return max([one for one in fitting if units >= FEWEST_STEPS * one], default=1)


def resized(inspection: Inspection, widths: Widths) -> Inspection:
    """The inspection of the model with so many units in every layer."""
    fewer = [one for one in inspection.structures if one.kind in widths and one.kind != HIDDEN]
    gone = sum((one.count - widths[one.kind]) * one.parameters for one in fewer)
    total = sum(
        one.elements(one.count, inspection.layers) - one.elements(widths[one.kind], inspection.layers)
        for one in fewer
    )
    # Keys and values of a single head stay: all query heads read them.
    stays = ("key", "value") if inspection.key_value_heads == 1 else ()
    sites = tuple(
        site if site.kind in stays else _resized(site, fewer, widths)
        for site in inspection.sites
        if _stays(site, widths)
    )
    changes: dict[str, int] = {}
    for one in fewer:
        kept = widths[one.kind]
        if one.kind == "neuron":
            changes["ffn"] = kept
        elif one.kind == "expert":
            changes["layer_macs"] = inspection.layer_macs - (one.count - kept) * inspection.hidden
        else:
            changes["heads"] = inspection.heads * kept // one.count
            single = inspection.key_value_heads == 1
            changes["key_value_heads"] = 1 if single else inspection.key_value_heads * kept // one.count
    left = replace(
        inspection,
        **changes,  # type: ignore[arg-type]
        sites=sites,
        prunable_parameters=sum(site.size for site in sites),
        parameters=inspection.parameters - total,
        bytes=inspection.bytes - total * ITEM_SIZES[inspection.dtype],
        layer_parameters=inspection.layer_parameters - gone,
        layer_bytes=inspection.layer_bytes - gone * ITEM_SIZES[inspection.dtype],
        structures=tuple(
            _fewer(one, widths.get(one.kind, one.count), inspection, sites)
            for one in inspection.structures
            if one.kind != HIDDEN
        )
        + tuple(one for one in inspection.structures if one.kind == HIDDEN),
    )
    return with_hidden(left, widths[HIDDEN], inspection) if HIDDEN in widths else left


def _fewer(one: Structure, kept: int, whole: Inspection, sites: Sequence[Site]) -> Structure:
    elements = one.elements(kept, whole.layers) if one.whole else 0
    parameters = one.parameters
    if one.kind == "expert":
        parameters -= _expert_size(whole.sites) - _expert_size(sites)
    counts = tuple(n for n in one.counts if n <= kept)
    return replace(one, count=kept, counts=counts, whole=elements, parameters=parameters)


def _expert_size(sites: Sequence[Site]) -> int:
    """Elements of the weights of one expert."""
    return sum(site.size for site in sites if site.layer == 0 and expert_of(site.name) == 0)


def _stays(site: Site, widths: Widths) -> bool:
    """Whether a weight has its place in the smaller model, where experts are renumbered."""
    expert = expert_of(site.name)
    return expert is None or expert < widths.get("expert", expert + 1)


def _resized(site: Site, fewer: list[Structure], widths: Widths) -> Site:
    rows, columns = site.shape
    for one in fewer:
        kept = widths[one.kind]
        if one.kind == "expert":
            if expert_of(site.name) is not None:
                return replace(site, share=round(site.share * one.count) / kept)
        elif plain(site.kind) == COLUMNS[one.kind]:
            columns = columns * kept // one.count
        elif plain(site.kind) in ROWS[one.kind]:
            rows = rows * kept // one.count
    return replace(site, shape=(rows, columns))


def achieved(specification: JobSpecification, inspection: Inspection, widths: Widths) -> float:
    """The sparsity that these numbers are."""
    found = structures(specification, inspection)
    if HIDDEN in widths:
        total = owned(inspection, list(widths))
        return (inspection.parameters - resized(inspection, widths).parameters) / total
    total = sum(one.elements(one.count, inspection.layers) for one in found)
    return 1 - sum(one.elements(widths[one.kind], inspection.layers) for one in found) / total


def figure(specification: JobSpecification, inspection: Inspection, widths: Widths) -> int:
    """What the target counts of the model with these widths: for a sparsity the parameters of all units, else
    parameters, multiply-accumulates, or bytes as they will be written."""
    kind = specification.target.kind
    if kind == "sparsity" and HIDDEN in widths:
        return (
            owned(inspection, list(widths)) - inspection.parameters + resized(inspection, widths).parameters
        )
    left = with_skips(specification, resized(subject(specification, inspection), widths))
    if kind == "sparsity":
        found = structures(specification, inspection)
        return sum(one.elements(widths[one.kind], inspection.layers) for one in found)
    if kind == "macs":
        return count_macs(left, stated_length(specification, inspection)).total
    if kind == "bytes":
        return weight_bytes(left, specification.output.dtype)
    return left.parameters


def dense_figure(specification: JobSpecification, inspection: Inspection) -> int:
    """The same of the dense model, whose bytes are those it came with."""
    if specification.target.kind == "bytes":
        return inspection.bytes
    if specification.target.kind == "parameters":
        return inspection.parameters
    if specification.target.kind == "macs":
        return count_macs(inspection, stated_length(specification, inspection)).total
    return figure(specification, inspection, _whole(specification, inspection))


def goal(specification: JobSpecification, inspection: Inspection) -> float:
    """The figure that the target asks for."""
    target = specification.target
    dense = dense_figure(specification, inspection)
    if target.sparsity is not None:
        return dense * (1 - target.sparsity)
    kind, amount = quantity(target.kind, target.value)
    return amount * dense if kind == "ratio" else amount


def smallest(specification: JobSpecification, inspection: Inspection) -> dict[str, int]:
    """The fewest units that may stay."""
    return {one.kind: counts(one, specification)[0] for one in structures(specification, inspection)}


def largest(specification: JobSpecification, inspection: Inspection) -> dict[str, int]:
    """The most units that may stay while something goes: one step less of what is smallest."""
    found = structures(specification, inspection)
    whole = _whole(specification, inspection)
    less = [
        {**whole, one.kind: steps[-2]} for one in found if len(steps := counts(one, specification)) > 1
    ]  # fmt: skip
    return max(less, key=lambda widths: figure(specification, inspection, widths), default=whole)


def _whole(specification: JobSpecification, inspection: Inspection) -> dict[str, int]:
    return {one.kind: one.count for one in structures(specification, inspection)}


def choose(specification: JobSpecification, inspection: Inspection) -> dict[str, int] | None:
    """How many units of each kind stay in every layer; None if the target cannot be met, or asks for nothing.

    A sparsity is met to the nearest step; parameters, macs and bytes are met by the most units that are not
    above them, one step at least going. Of neurons and heads, heads are the coarser: of all their numbers for
    which neurons bring the target to within a step, that is taken whose share is nearest to that of neurons
    (more heads, of equals).
    """
    found = structures(specification, inspection)
    if not found:
        return None
    if len(found) > 1 and any(one.kind == HIDDEN for one in found):
        return _choose_together(specification, inspection, found)
    whole = _whole(specification, inspection)
    fine = found[0]
    full = figure(specification, inspection, whole)
    # Where no single unit can go, as many as must go at a time.
    step = fine.count - (fine.counts[-2] if len(fine.counts) > 1 else fine.count - 1)
    if turned_by_layer(specification):
        step = 1

    def lessened(units: int) -> int:
        return figure(specification, inspection, {**whole, fine.kind: fine.count - units})

    each, bend = full - lessened(step), 0
    if turned_by_layer(specification):
        # Weights on skip connections are squares of the width, so second differences are constant.
        bend = full - 2 * lessened(1) + lessened(2)

    def figures(widths: Widths) -> dict[int, float]:
        above = figure(specification, inspection, widths)
        gone = {n: fine.count - n for n in counts(fine, specification)}
        return {n: above - k * each // step + k * (k - 1) // 2 * bend for n, k in gone.items()}

    nearest = specification.target.kind == "sparsity"
    return pick(specification, found, goal(specification, inspection), figures, nearest=nearest)


def pick(
    specification: JobSpecification,
    found: list[Structure],
    wanted: float,
    figures_of: Callable[[Widths], dict[int, float]],
    *,
    nearest: bool,
) -> dict[str, int] | None:
    """The choice of `choose`, where `figures_of` says for numbers of the coarse kind what the target counts
    at each number of the fine one."""
    whole: dict[str, int] = {one.kind: one.count for one in found}
    fine = found[0]
    values = list(figures_of(whole).values())
    gap = max((after - before for before, after in pairwise(values)), default=0.0)
    limit = gap / (2 if nearest else 1)
    best: tuple[tuple[bool, float, float], dict[str, int]] | None = None
    for rest in _coarse(specification, found[1:]):
        widths: dict[str, int] = {**whole, **rest}
        figures = figures_of(widths)
        if not nearest:
            figures = {
                n: at for n, at in figures.items() if at <= wanted and {**widths, fine.kind: n} != whole
            }
        if not figures:
            continue
        n = min(figures, key=lambda n: (abs(figures[n] - wanted), -n))
        share = n / fine.count - (next(iter(rest.values())) / found[1].count if rest else 0)
        missed = abs(figures[n] - wanted)
        ranked = (missed > limit, abs(share) if rest else 0.0, -sum(rest.values()))
        if (not nearest or missed <= limit) and (best is None or ranked < best[0]):
            best = (ranked, {**widths, fine.kind: n})
    return None if best is None or best[1] == whole else best[1]


def _choose_together(
    specification: JobSpecification, inspection: Inspection, found: list[Structure]
) -> dict[str, int] | None:
    """The same of hidden channels beside neurons and heads."""
    kinds: list[str] = [one.kind for one in found]
    dense: dict[str, int] = {one.kind: one.count for one in found}
    # Classes that take no other hidden widths than multiples of their heads say so by `counts`.
    even = any(one.kind == HIDDEN and one.counts for one in found)

    def cost(numbers: tuple[int, ...]) -> int:
        return figure(specification, inspection, dict(zip(kinds, numbers, strict=True)))

    def allowed(numbers: tuple[int, ...]) -> bool:
        widths: dict[str, int] = dict(zip(kinds, numbers, strict=True))
        heads = inspection.heads * widths.get("head", 1) // dense.get("head", 1)
        return not even or widths[HIDDEN] % heads == 0

    numbers = together(
        cost,
        [counts(one, specification) for one in found],
        allowed,
        goal(specification, inspection),
        nearest=specification.target.kind == "sparsity",
    )
    return None if numbers is None else dict(zip(kinds, numbers, strict=True))


def _coarse(specification: JobSpecification, rest: list[Structure]) -> Iterator[dict[str, int]]:
    if not rest:
        yield {}
        return
    (one,) = rest
    for number in counts(one, specification):
        yield {one.kind: number}
