"""Which units of a graph go, so that its target is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compression.errors import TargetUnreachable
from compression.graphs.choosing import choose_within
from compression.graphs.costs import CostModel, Costs
from compression.graphs.criteria import CRITERIA, Scores
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Evidence
from compression.graphs.pruning import Chosen, score_units
from compression.specification import Target, quantity
from compression.stages.graphs.files import written

ITEM_SIZES = {"float16": 2, "float32": 4, "float64": 8}
ATTEMPTS = 8


@dataclass(frozen=True)
class Ways:
    """How units are chosen: the options of a recipe. `given`: scores that are known already; `scales`: what
    those of a group are divided by before groups are compared (None: their means). `share` of the way to the
    target."""

    criterion: str
    across_groups: bool
    share_kept: float
    multiple: int
    seed: int
    evidence: Evidence | None = None
    given: Mapping[str, Scores] | None = None
    scales: Mapping[str, float] | None = None
    share: float = 1.0

    def on_the_way(self, dense: float, most: float) -> float:
        """What is asked for `share` of the way from the dense costs to the target, in equal ratios."""
        return most if self.share >= 1 else dense * (most / dense) ** self.share


def ways_of(options: Mapping[str, Any], criterion: str, seed: int, evidence: Evidence | None = None) -> Ways:
    """How the options of a recipe of channels say that units are chosen."""
    across_groups, multiple = options["allocation"] == "global", int(options["channel_multiple"])
    return Ways(criterion, across_groups, float(options["minimum_share"]), multiple, seed, evidence)


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
        bound = _bound(target, dense)
        asked = replace(bound, most=ways.on_the_way(bound.dense, bound.most))
        return _within(anatomy, asked, ways, model)
    form, amount = quantity("bytes", target.value)
    wanted = most = ways.on_the_way(stored, amount * stored if form == "ratio" else amount)
    # The file is a little more or less than its tensors: numbers of fewer digits, shapes written anew.
    beside = written(anatomy.graph).ByteSize() - dense.parameters * ITEM_SIZES[dtype]
    for _ in range(ATTEMPTS):
        bound = Bound("bytes", most, stored, lambda costs: costs.parameters * ITEM_SIZES[dtype] + beside)
        chosen = _within(anatomy, bound, ways, model)
        over = written(cut(anatomy, chosen)).ByteSize() - wanted
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
    known = ways.given
    if known is None:
        known = score_units(anatomy, ways.criterion, ways.evidence, ways.seed)
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
        model=model,
        scales=ways.scales,
    )
    if chosen is None:
        least = bound.of(costs)
        raise TargetUnreachable(
            f"{bound.kind} of at most {bound.most:,.0f} are asked for; with {ways.criterion}, "
            f"options.minimum_share {ways.share_kept} and channel_multiple {ways.multiple} at least "
            f"{least:,.0f} of {bound.dense:,} stay (a ratio of {least / bound.dense:.3f}): ask for that much "
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
