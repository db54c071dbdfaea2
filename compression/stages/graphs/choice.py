"""Which units of a graph go, so that its target is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compression.errors import TargetUnreachable
from compression.graphs.choosing import choose_within
from compression.graphs.costs import CostModel, Costs
from compression.graphs.criteria import CRITERIA
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Evidence
from compression.graphs.feedforward import hidden_neurons
from compression.graphs.pruning import Chosen
from compression.specification import Target, quantity
from compression.stages.graphs.files import written

ITEM_SIZES = {"float16": 2, "float32": 4, "float64": 8}
ATTEMPTS = 8


@dataclass(frozen=True)
class Ways:
    """How units are chosen: the options of a recipe."""

    criterion: str
    across_groups: bool
    share_kept: float
    multiple: int
    seed: int
    evidence: Evidence | None = None
    normalise: str = "mean"
    units: str = "all"


@dataclass(frozen=True)
class Bound:
    """A target as a bound: `of` the costs, at most `most`; `dense` is the graph's own."""

    kind: str
    most: float
    dense: int
    of: Callable[[Costs], float]


def choose(anatomy: Anatomy, target: Target, stored: int, dtype: str, ways: Ways) -> Chosen:
    """The fewest units of the lowest scores whose removal meets a target. `stored` are the bytes of the
    model's files as they came. Raises TargetUnreachable with what can be reached."""
    if not anatomy.groups:
        raise TargetUnreachable(f"no channel of this graph can be removed: {reasons(anatomy)}")
    model = CostModel(anatomy)
    dense = model.without({})
    if target.kind != "bytes":
        return _within(anatomy, _bound(target, dense), ways, model)
    form, amount = quantity("bytes", target.value)
    most = amount * stored if form == "ratio" else amount
    # The file is a little more or less than its tensors: numbers of fewer digits, shapes written anew.
    beside = written(anatomy.graph).ByteSize() - dense.parameters * ITEM_SIZES[dtype]
    for _ in range(ATTEMPTS):
        bound = Bound("bytes", most, stored, lambda costs: costs.parameters * ITEM_SIZES[dtype] + beside)
        chosen = _within(anatomy, bound, ways, model)
        over = written(cut(anatomy, chosen)).ByteSize() - (amount * stored if form == "ratio" else amount)
        if over <= 0:
            return chosen
        most -= over
    raise TargetUnreachable(f"no choice of channels was found that is written in {amount:,.0f} bytes")


def _bound(target: Target, dense: Costs) -> Bound:
    if target.kind == "sparsity":
        kept = (1 - float(target.value)) * dense.parameters
        return Bound("parameters", kept, dense.parameters, lambda costs: costs.parameters)
    of: Mapping[str, Callable[[Costs], int]] = {
        "macs": lambda costs: costs.macs,
        "parameters": lambda costs: costs.parameters,
    }
    measure = of[target.kind]
    form, amount = quantity(target.kind, target.value)
    most = amount * measure(dense) if form == "ratio" else amount
    return Bound(target.kind, most, measure(dense), measure)


def _within(anatomy: Anatomy, bound: Bound, ways: Ways, model: CostModel) -> Chosen:
    if bound.most >= bound.dense:
        raise TargetUnreachable(
            f"the model has {bound.dense:,} {bound.kind} as it is, which is no more than "
            f"{bound.most:,.0f}: ask for less"
        )
    criterion = CRITERIA[ways.criterion]
    hidden = hidden_neurons(anatomy) if ways.units == "mlp" else None
    if hidden is not None and not hidden:
        raise TargetUnreachable(
            "options.units mlp takes hidden neurons between two matrices alone, and this graph has none: "
            "write options.units all"
        )
    scores = {
        group.name: criterion.scores(anatomy, group, ways.seed, ways.evidence)
        for group in anatomy.groups
        if hidden is None or group.name in hidden
    }
    known = {name: one for name, one in scores.items() if one is not None}
    if not known:
        raise TargetUnreachable(
            f"the criterion {ways.criterion} says nothing of any channel of this graph: {criterion.summary} "
            "Choose another recipe, such as group-l2"
        )
    chosen, costs = choose_within(
        anatomy,
        known,
        lambda costs: bound.of(costs) <= bound.most,
        across_groups=ways.across_groups,
        share_kept=ways.share_kept,
        multiple=ways.multiple,
        normalise=ways.normalise,
        model=model,
    )
    if chosen is None:
        least = bound.of(costs)
        raise TargetUnreachable(
            f"{bound.kind} of at most {bound.most:,.0f} are asked for; with {ways.criterion}, "
            f"options.units {ways.units}, minimum_share {ways.share_kept} and channel_multiple "
            f"{ways.multiple} at least {least:,.0f} of {bound.dense:,} stay (a ratio of "
            f"{least / bound.dense:.3f}): ask for that much "
            f"or more. What stays: {reasons(anatomy)}"
        )
    return chosen


def reasons(anatomy: Anatomy) -> str:
    """The operators that keep channels, those that keep most first."""
    counted: dict[str, int] = {}
    for one in anatomy.uncut:
        counted[one.reason] = counted.get(one.reason, 0) + one.channels
    ordered: Sequence[tuple[str, int]] = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count} channels, as {reason}" for reason, count in ordered[:3]]
    return "; ".join(told) or "there are no channels between its weights"
