"""Which units of a graph go, so that its target is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compression.errors import TargetUnreachable
from compression.graphs.allocation import Bound, OutOfReach, allocate, normalised
from compression.graphs.batches import Batches
from compression.graphs.costs import CostModel, Costs
from compression.graphs.criteria import CRITERIA, Scores
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Evidence
from compression.graphs.feedforward import hidden_neurons
from compression.graphs.floors import Floors, choose_above_floors
from compression.graphs.pruning import Chosen, score_units
from compression.graphs.tasks import tasks_of
from compression.specification import Target, quantity
from compression.stages.graphs.files import written

ITEM_SIZES = {"float16": 2, "float32": 4, "float64": 8}
ATTEMPTS = 8
ENGINE_NAMES = {"uniform": "local"}
"""Allocations whose name in a job is another one."""


@dataclass(frozen=True)
class Ways:
    """How units are chosen: the options of a recipe. `floors` and `batches` are for the allocation floors,
    which lets every task's loss rise by `rise` at first. `given`: scores that are known already; `scales`:
    what those of a group are divided by before groups are compared (None: as `normalise` says). `share` of
    the way to the target."""

    criterion: str
    allocation: str
    normalise: str
    share_kept: float
    multiple: int
    seed: int
    evidence: Evidence | None = None
    batches: Batches = ()
    floors: Floors | None = None
    rise: float = 0.0
    units: str = "all"
    given: Mapping[str, Scores] | None = None
    scales: Mapping[str, float] | None = None
    share: float = 1.0

    def on_the_way(self, dense: float, most: float) -> float:
        """What is asked for `share` of the way from the dense costs to the target, in equal ratios."""
        return most if self.share >= 1 else dense * (most / dense) ** self.share


def plain_ways(options: Mapping[str, Any], criterion: str, seed: int) -> Ways:
    """The options of a recipe of channels as ways to choose, without what data say. Scores of another
    criterion than the recipe's are divided by their means."""
    return Ways(
        criterion,
        str(options["allocation"]),
        str(options["normalise"]) if criterion == options["criterion"] else "mean",
        float(options["minimum_share"]),
        int(options["channel_multiple"]),
        seed,
        units=str(options["units"]),
    )


@dataclass(frozen=True)
class Limit:
    """A target as a bound: `of` a graph without some units, at most `most`; `dense` is the graph's own.
    `told` writes an amount."""

    kind: str
    most: float
    dense: float
    of: Callable[[Chosen], float]
    told: Callable[[float], str] = "{:,.0f}".format


def choose(anatomy: Anatomy, target: Target, stored: int, dtype: str, ways: Ways) -> Chosen:
    """The fewest units of the lowest scores whose removal meets a target of anything but latency. `stored`
    are the bytes of the model's files as they came. Raises TargetUnreachable with what can be reached."""
    model = CostModel(anatomy)
    dense = model.without({})
    if target.kind != "bytes":
        limit = _limit(target, dense, model)
        return within(anatomy, replace(limit, most=ways.on_the_way(limit.dense, limit.most)), ways)
    form, amount = quantity("bytes", target.value)
    wanted = most = ways.on_the_way(stored, amount * stored if form == "ratio" else amount)
    # The file is a little more or less than its tensors: numbers of fewer digits, shapes written anew.
    beside = written(anatomy.graph).ByteSize() - dense.parameters * ITEM_SIZES[dtype]

    def of(gone: Chosen) -> float:
        return float(model.without(gone).parameters * ITEM_SIZES[dtype] + beside)

    for _ in range(ATTEMPTS):
        chosen = within(anatomy, Limit("bytes", most, stored, of), ways)
        over = written(cut(anatomy, chosen)).ByteSize() - wanted
        if over <= 0:
            return chosen
        most -= over
    raise TargetUnreachable(f"no choice of channels was found that is written in {amount:,.0f} bytes")


def _limit(target: Target, dense: Costs, model: CostModel) -> Limit:
    of: Mapping[str, Callable[[Costs], int]] = {
        "macs": lambda costs: costs.macs,
        "parameters": lambda costs: costs.parameters,
    }
    if target.kind == "sparsity":
        kind, most = "parameters", (1 - float(target.value)) * dense.parameters
    else:
        kind = target.kind
        form, amount = quantity(kind, target.value)
        most = amount * of[kind](dense) if form == "ratio" else amount
    measure = of[kind]
    return Limit(kind, most, measure(dense), lambda gone: measure(model.without(gone)))


def within(anatomy: Anatomy, limit: Limit, ways: Ways) -> Chosen:
    """The units that go so that a graph stays within a limit. Raises TargetUnreachable."""
    if not anatomy.groups:
        raise TargetUnreachable(f"no channel of this graph can be removed: {reasons(anatomy)}")
    if limit.most >= limit.dense:
        raise TargetUnreachable(
            f"the model has {limit.told(limit.dense)} {limit.kind} as it is, which is no more than "
            f"{limit.told(limit.most)}: ask for less"
        )
    scores, normalise = known_scores(anatomy, ways), ways.normalise
    if ways.scales is not None:
        scores, normalise = {name: one / ways.scales[name] for name, one in scores.items()}, "none"
    bound = Bound(limit.of, limit.most, limit.kind, ways.share_kept, ways.multiple)
    try:
        if ways.allocation == "floors":
            tasks = tasks_of(anatomy, ways.batches, ways.rise)
            found = normalised(scores, normalise)
            return choose_above_floors(anatomy, found, ways.batches, tasks, bound, ways.floors)
        how = ENGINE_NAMES.get(ways.allocation, ways.allocation)
        return allocate(anatomy, scores, bound, how, normalise)
    except OutOfReach as error:
        raise TargetUnreachable(
            f"{limit.kind} of at most {limit.told(limit.most)} are asked for; with {ways.criterion}, "
            f"options.units {ways.units}, minimum_share {ways.share_kept} and channel_multiple "
            f"{ways.multiple} at least "
            f"{limit.told(error.least)} of {limit.told(limit.dense)} stay (a ratio of "
            f"{error.least / limit.dense:.3f}): ask for that much or more. What stays: {reasons(anatomy)}"
        ) from None


def known_scores(anatomy: Anatomy, ways: Ways) -> dict[str, Scores]:
    """The scores of the groups that the criterion says something of. TargetUnreachable if there are none."""
    hidden = hidden_neurons(anatomy) if ways.units == "mlp" else None
    if hidden is not None and not hidden:
        raise TargetUnreachable(
            "options.units mlp takes hidden neurons between two matrices alone, and this graph has none: "
            "write options.units all"
        )
    found = ways.given
    if found is None:
        found = score_units(anatomy, ways.criterion, ways.evidence, ways.seed)
    found = {name: one for name, one in found.items() if hidden is None or name in hidden}
    if not found:
        raise TargetUnreachable(
            f"the criterion {ways.criterion} says nothing of any channel of this graph: "
            f"{CRITERIA[ways.criterion].summary} Choose another recipe, such as group-l2"
        )
    return found


def reasons(anatomy: Anatomy) -> str:
    """The operators that keep channels, those that keep most first."""
    counted: dict[str, int] = {}
    for one in anatomy.uncut:
        counted[one.reason] = counted.get(one.reason, 0) + one.channels
    ordered: Sequence[tuple[str, int]] = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count} channels, as {reason}" for reason, count in ordered[:3]]
    return "; ".join(told) or "there are no channels between its weights"
