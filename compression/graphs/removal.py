"""Which units of a graph go, and what that leaves of the axes of its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compression.graphs.dependencies import Anatomy
from compression.graphs.errors import CutImpossible
from compression.graphs.graph import Array, Node

Removed = Mapping[str, Iterable[int]]
"""By the name of a group, the numbers of its units that go."""
Kept = NDArray[np.bool_]


def removed_labels(anatomy: Anatomy, removed: Removed) -> Kept:
    """By label, whether its set goes; bool [labels]. CutImpossible for a group or unit that there is not."""
    gone = np.zeros(anatomy.label_count, dtype=np.bool_)
    for name, units in removed.items():
        group = anatomy.group(name)
        places = np.fromiter(units, dtype=np.int64)
        if places.size and not (0 <= places.min() and places.max() < group.units):
            raise CutImpossible(f"the group {name!r} has units 0 to {group.units - 1}")
        gone[group.labels[places]] = True
    return gone


@dataclass
class Cut:
    """A cut in progress: which elements of which axes stay, and the initializers and nodes it adds."""

    anatomy: Anatomy
    gone: Kept
    added: dict[str, Array] = field(default_factory=dict)
    before: list[Node] = field(default_factory=list)

    def keep(self, value: str, axis: int) -> Kept | None:
        """Which elements of an axis stay; bool [size]; None where all do."""
        known = self.anatomy.axes.get(value)
        ids = None if known is None else known[axis]
        if ids is None:
            return None
        kept = ~self.gone[ids]
        return None if kept.all() else kept

    def size(self, value: str, axis: int) -> int:
        """How long an axis is after the cut (in the first sample)."""
        kept = self.keep(value, axis)
        return self.anatomy.probe.shape(value)[axis] if kept is None else int(kept.sum())

    def changes(self, value: str) -> bool:
        """Whether any axis of a value gets shorter."""
        return any(self.keep(value, axis) is not None for axis in range(len(self.anatomy.probe.shape(value))))

    def told(self, value: str) -> bool:
        """Whether an integer value is computed from sizes that get shorter."""
        known = self.anatomy.sizes.get(value, ())
        return any(self.keep(name, axis) is not None for axes in known for name, axis in axes)

    def constant(self, node: Node, what: str, array: Array) -> str:
        """The name of a new initializer that stands in for an input of a node."""
        taken = self.anatomy.graph.initializers
        stem = f"{node.value}.{what}"
        name, number = stem, 0
        while name in taken or name in self.added or name in self.anatomy.probe.shapes[0]:
            number += 1
            name = f"{stem}.{number}"
        self.added[name] = array
        return name
