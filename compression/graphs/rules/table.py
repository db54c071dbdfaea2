"""How operators tie channels together: the table of rules and what a rule works with.

A rule reads the labels of a node's inputs, joins or freezes labels, and sets the labels of the outputs.
It is right if, whatever sets of labels are removed, the node computes on what is left the same as before,
provided that the removed part of every `contraction` is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compression.graphs.graph import Graph, Node
from compression.graphs.labels import CONSUMED, PRODUCED, ZEROED, Axis, Ids, Labels
from compression.graphs.probe import Probe
from compression.graphs.signs import nonnegative_values

Axes = tuple[Axis, ...]
Rule = Callable[["Analysis", Node], None]
RULES: dict[tuple[str, str], Rule] = {}
MOVING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
LARGEST = 1 << 22
"""Elements of an axis that are labelled; longer ones are not cut."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            if ("", name) in RULES:
                raise ValueError(f"the rule of {name!r} is registered twice")
            RULES["", name] = function
        return function

    return register


class Analysis:
    """The labels of all values so far. `choices` says, by the place of a node, which of several ways of
    cutting is taken there; ways are counted from 0, and one that is not there means the last."""

    def __init__(self, graph: Graph, probe: Probe, choices: Mapping[str, int], otherwise: int) -> None:
        self.graph = graph
        self.probe = probe
        self.labels = Labels()
        self.axes: dict[str, Axes] = {}
        self.constants: set[str] = set(graph.initializers)
        """Initializers, also moved ones: zero where the initializer is zero."""
        self.derived: set[str] = set(graph.initializers)
        """Whatever is computed from initializers alone."""
        self.contractions: list[tuple[str, int]] = []
        self.decided: dict[str, tuple[int, Ids]] = {}
        self._choices = choices
        self._otherwise = otherwise
        for value in graph.inputs:
            self.axes[value.name] = (None,) * len(probe.shape(value.name))

    def of(self, value: str) -> Axes:
        """The labels of a value's axes; those of an initializer are made when it is first asked for."""
        if value not in self.axes:
            shape = self.probe.shape(value)
            known = value in self.graph.initializers and value in self.probe.floating
            self.axes[value] = tuple(
                self.labels.new(size) if known and 1 < size <= LARGEST else None for size in shape
            )
        return self.axes[value]

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value in the first sample."""
        return self.probe.shape(value)

    def put(self, node: Node, axes: Sequence[Axis], place: int = 0) -> None:
        """Set the labels of an output. An axis of one element is not cut."""
        if place >= len(node.outputs) or not node.outputs[place]:
            return
        name = node.outputs[place]
        shape = self.shape(name)
        assert len(axes) == len(shape), f"{node.label}: {len(axes)} labelled axes of {len(shape)}"
        self.axes[name] = tuple(None if size == 1 else axis for axis, size in zip(axes, shape, strict=True))
        for axis, size in zip(axes, shape, strict=True):
            if size == 1:
                self.freeze(axis, node, "leaves one element of it")
            else:
                assert axis is None or axis.size == size, f"{node.label}: {axis} for {size}"

    def freeze(self, axis: Axis, node: Node, why: str) -> None:
        """Keep these labels because of what a node does."""
        self.labels.freeze(axis, f"{node.label} {why}")

    def freeze_all(self, node: Node, why: str) -> None:
        """Keep the labels of all inputs of a node; its outputs have none."""
        for name in node.inputs:
            if name:
                for axis in self.of(name):
                    self.freeze(axis, node, why)
        for name in node.outputs:
            if name and name in self.probe.shapes[0]:
                self.axes[name] = (None,) * len(self.shape(name))

    def together(self, node: Node, axes: Sequence[Axis]) -> Axis:
        """Axes that run side by side, all of the same length: joined, or frozen where one is not cut."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            for axis in known:
                self.freeze(axis, node, "ties it to an axis that is not cut")
            return None
        for axis in known[1:]:
            self.labels.join(known[0], axis)
        return known[0] if known else None

    def contract(self, node: Node, sides: Sequence[tuple[str, int]]) -> None:
        """Axes of values that are multiplied and summed over. What is removed of them must be zero: a
        constant among them is zeroed itself, otherwise the first value is masked."""
        axes = [self.of(name)[axis] for name, axis in sides]
        if self.together(node, axes) is None:
            return
        constant = [place for place, (name, _) in enumerate(sides) if name in self.constants]
        for place in constant:
            self.labels.mark(axes[place], CONSUMED)
        if not constant:
            if self.probe.varies(*sides[0]):  # no mask of one length fits
                self.freeze(axes[0], node, "sums over an axis that holds the batch")
            self.contractions.append(sides[0])

    def produce(self, value: str, axis: int) -> None:
        """Say that a constant makes the elements of this axis."""
        if value in self.derived:
            # what is computed from weights may not take zeros well (a norm that divides them): see `masking`
            zeroed = ZEROED if value in self.constants else 0
            self.labels.mark(self.of(value)[axis], PRODUCED | zeroed)

    def follow_constants(self, node: Node) -> None:
        """Note which outputs of a node depend on initializers alone."""
        names = [name for name in node.inputs if name]
        if names and all(name in self.derived for name in names):
            self.derived.update(node.outputs)
            if node.operator in MOVING and names[0] in self.constants:
                self.constants.update(node.outputs)

    @functools.cached_property
    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return self.graph.producers()

    @functools.cached_property
    def nonnegative(self) -> frozenset[str]:
        """Values that are never negative."""
        return nonnegative_values(self.graph)

    def squared(self, value: str) -> bool:
        """Whether a value is a square: a product with itself, or a power of two."""
        made = self.producers.get(value)
        if made is None:
            return False
        if made.operator == "Pow":
            power = self.graph.initializers.get(made.inputs[1])
            return power is not None and power.size == 1 and float(power.item()) == 2
        return made.operator == "Mul" and made.inputs[0] == made.inputs[1]

    def choose(self, node: Node, ways: int) -> int:
        """Which of several ways of cutting is taken at a node."""
        return min(self._choices.get(node.outputs[0], self._otherwise), ways - 1)

    def decide(self, node: Node, ways: int, labels: Ids) -> None:
        """Note that a node had a choice and which labels it led to."""
        self.decided[node.outputs[0]] = (ways, labels.ravel())


def known_integers(analysis: Analysis, node: Node, place: int) -> tuple[int | None, ...] | None:
    """An integer input of a node, None for elements that vary; None where it is left out or unknown."""
    name = node.input(place)
    return analysis.probe.integers(name) if name else None


def frozen_new(analysis: Analysis, node: Node, count: int) -> Ids:
    """Labels for elements beside labelled ones that are not cut."""
    made = analysis.labels.new(count)
    analysis.freeze(made, node, "joins it to what is not cut")
    return made


def concatenated(analysis: Analysis, node: Node, parts: Sequence[tuple[Axis, int]]) -> Axis:
    """The labels of axes (each with its length) put one behind the other."""
    if all(axis is None for axis, _ in parts):
        return None
    whole = [frozen_new(analysis, node, size) if axis is None else axis for axis, size in parts]
    return np.concatenate(whole)
