"""What hangs together in a graph: groups of units, each unit a set of slices of initializers that go as
one.

Labels are carried through the graph by the rules of its operators (`rules/`); sets of labels that
something makes and nothing freezes are units. Where a graph leaves several ways to cut (heads or widths
of heads; whole groups of a convolution or the same channels of every group) the analysis runs once for
each way everywhere, and then once with the way that leaves most units at each place; attention prefers
heads. That is at most `WAYS` + 2 runs, each about linear in the number of labelled elements.

The idea of groups that are found by following dependencies is DepGraph's (Fang et al. 2023,
arXiv:2301.12900); here dependencies hold between single elements of axes rather than between layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.graphs.errors import CutImpossible
from compression.graphs.graph import Graph, Node
from compression.graphs.labels import CONSUMED, PRODUCED, ZEROED, Axis, Ids
from compression.graphs.probe import Probe, probe
from compression.graphs.rules import RULES, Analysis
from compression.graphs.sizes import SizeTracker

WAYS = 4
"""Ways of cutting that are tried at one place."""


@dataclass(frozen=True)
class Site:
    """What the units of a group own of one axis of an initializer: `places` int64 [units, elements] of
    that axis. `role`: producer (makes the unit), consumer (reads it), or follower."""

    initializer: str
    axis: int
    role: str
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Units that own the same sites. `name` is the first producer and the first unit's place in it."""

    name: str
    sites: tuple[Site, ...]
    labels: Ids
    heads: bool

    @property
    def units(self) -> int:
        """How many units the group has."""
        return len(self.labels)

    def producers(self) -> Iterator[Site]:
        """The sites that make the units."""
        return (site for site in self.sites if site.role == "producer")


@dataclass(frozen=True)
class Uncut:
    """Channels that an initializer makes and that cannot be removed: how many, because of which operator."""

    initializer: str
    axis: int
    channels: int
    reason: str


@dataclass(frozen=True)
class Anatomy:
    """What can be cut in a graph and what not. `axes` are the sets of labels of every value's axes,
    `contractions` the (value, axis) that masks must be put on, `zeroed` the axes of initializers whose
    slices masks may zero."""

    graph: Graph
    probe: Probe
    groups: tuple[Group, ...]
    uncut: tuple[Uncut, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    contractions: tuple[tuple[str, int], ...]
    zeroed: frozenset[tuple[str, int]]
    sizes: Mapping[str, tuple[frozenset[tuple[str, int]], ...]]
    label_count: int

    def group(self, name: str) -> Group:
        """The group of that name; CutImpossible if there is none."""
        if name in self._by_name:
            return self._by_name[name]
        raise CutImpossible(f"the graph has no group {name!r}")

    @functools.cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}


def analyse(graph: Graph, sizes: Mapping[str, int] | None = None, seen: Probe | None = None) -> Anatomy:
    """The groups of a graph. `sizes` are lengths of named axes of its inputs other than the batch."""
    seen = seen or probe(graph, sizes)
    runs = [_run(graph, seen, {}, way) for way in range(2)]
    most = max((ways for ways, _ in runs[0][0].decided.values()), default=1)
    runs += [_run(graph, seen, {}, way) for way in range(2, min(most, WAYS))]
    choices = _choices([analysis for analysis, _ in runs])
    last = _run(graph, seen, choices, 0)
    best = max([last, *runs], key=lambda run: (_worth(run[0]), run is last))
    chosen = last if _worth(last[0]) >= 0.9 * _worth(best[0]) or any(_heads(last[0])) else best
    return _anatomy(*chosen)


def _run(
    graph: Graph, seen: Probe, choices: Mapping[str, int], otherwise: int
) -> tuple[Analysis, SizeTracker]:
    analysis = Analysis(graph, seen, choices, otherwise)
    tracker = SizeTracker(analysis)
    for node in graph.nodes:
        analysis.follow_constants(node)
        tracker.follow(node)
        _apply(analysis, node)
    for value in graph.outputs:
        for axis in analysis.of(value.name):
            analysis.labels.freeze(axis, f"it is the output {value.name!r} of the network")
    tracker.finish()
    return analysis, tracker


def _apply(analysis: Analysis, node: Node) -> None:
    found = RULES.get((node.domain, node.operator))
    if found is None:
        analysis.freeze_all(node, "is not followed")
    elif node.value in analysis.probe.floating or any(
        axis is not None for name in node.inputs if name for axis in analysis.of(name)
    ):
        found(analysis, node)
    else:  # arithmetic of shapes and indices has no channels
        analysis.freeze_all(node, "is not followed")


def _worth(analysis: Analysis) -> int:
    return int(analysis.labels.live().sum())


def _heads(analysis: Analysis) -> NDArray[np.bool_]:
    return analysis.labels.live() & analysis.labels.headed()


def _choices(runs: list[Analysis]) -> dict[str, int]:
    """By node, the way that leaves most units of those that pass it; where units are heads, the way of
    the heads."""
    best: dict[str, tuple[tuple[bool, int], int]] = {}
    for way, analysis in enumerate(runs):
        live, headed = analysis.labels.live(), analysis.labels.headed()
        for place, (ways, labels) in analysis.decided.items():
            if way >= ways:
                continue
            sets = np.unique(analysis.labels.find(labels))
            left = sets[live[sets]]
            worth = (bool(left.size and headed[left].any()), int(left.size))
            if place not in best or worth > best[place][0]:
                best[place] = (worth, way)
    return {place: way for place, (_, way) in best.items()}


def _anatomy(analysis: Analysis, tracker: SizeTracker) -> Anatomy:
    labels = analysis.labels
    live = labels.live()
    sites = [
        (name, axis, ids)
        for name in analysis.graph.initializers
        for axis, ids in enumerate(analysis.axes.get(name, ()))
        if ids is not None
    ]
    same: dict[int, Ids] = {}  # most operators hand on the very array they got

    def root(ids: Axis) -> Axis:
        if ids is None:
            return None
        if id(ids) not in same:
            same[id(ids)] = labels.find(ids)
        return same[id(ids)]

    axes = {name: tuple(root(ids) for ids in known) for name, known in analysis.axes.items()}
    zeroed = frozenset(
        (name, axis) for name, axis, ids in sites if (labels.marks(ids) & (CONSUMED | ZEROED)).any()
    )
    return Anatomy(
        analysis.graph, analysis.probe, _groups(analysis, sites, live), _uncut(analysis, sites), axes,
        tuple(analysis.contractions), zeroed, dict(tracker.known), labels.count,
    )  # fmt: skip


def _groups(
    analysis: Analysis, sites: list[tuple[str, int, Ids]], live: NDArray[np.bool_]
) -> tuple[Group, ...]:
    """Units with the same number of elements of the same sites, in the order of the graph's initializers."""
    labels = analysis.labels
    owned: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
    for number, (_, _, ids) in enumerate(sites):
        roots = labels.find(ids)
        order = np.argsort(roots, kind="stable")
        sets, starts = np.unique(roots[order], return_index=True)
        for root, owns in zip(sets.tolist(), np.split(order, starts[1:]), strict=True):
            if live[root]:
                owned.setdefault(root, []).append((number, owns))
    patterns: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for root, parts in owned.items():
        patterns.setdefault(tuple((number, len(places)) for number, places in parts), []).append(root)
    headed = labels.headed()
    found = []
    taken: set[str] = set()
    for pattern, members in patterns.items():
        made = []
        for part, (number, _) in enumerate(pattern):
            name, axis, ids = sites[number]
            places = np.stack([owned[root][part][1] for root in members])
            marks = int(np.bitwise_or.reduce(labels.marks(ids[places.ravel()])))
            made.append(Site(name, axis, _role(marks), places))
        first = next((site for site in made if site.role == "producer"), made[0])
        name = f"{first.initializer}:{int(first.places[0, 0])}"
        if name in taken:  # a weight that makes channels along two of its axes
            name = f"{first.initializer}:{first.axis}:{int(first.places[0, 0])}"
        taken.add(name)
        found.append(Group(name, tuple(made), np.array(members, dtype=np.int64), bool(headed[members].any())))
    return tuple(found)


def _role(marks: int) -> str:
    if marks & PRODUCED:
        return "producer"
    return "consumer" if marks & CONSUMED else "follower"


def _uncut(analysis: Analysis, sites: list[tuple[str, int, Ids]]) -> tuple[Uncut, ...]:
    found = []
    for name, axis, ids in sites:
        made = ids[(analysis.labels.marks(ids) & PRODUCED) != 0]
        counted: dict[str, int] = {}
        for reason in analysis.labels.reasons(made):
            if reason:
                counted[reason] = counted.get(reason, 0) + 1
        found += [Uncut(name, axis, count, reason) for reason, count in counted.items()]
    return tuple(found)
