"""Labels of channels: sets of elements that go together or not at all, as a union-find over integers.

Every element of an axis that may be cut has a label; operators join labels. A joined set is one unit; a
set that is frozen stays, and says why. All work on whole arrays, near linear in the number of elements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Axis = Ids | None
"""The labels of an axis' elements; None for an axis that is not cut (batch, space, input of the network)."""

PRODUCED, CONSUMED, ZEROED = 1, 2, 4
"""What an element of a weight does for its unit: make it, read it, or follow it linearly (bias, scale)."""


class Labels:
    """Makes labels, joins and freezes them."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, dtype=np.int64)
        self._reason: NDArray[np.int32] = np.zeros(1024, dtype=np.int32)
        self._marks: NDArray[np.uint8] = np.zeros(1024, dtype=np.uint8)
        self._headed: NDArray[np.bool_] = np.zeros(1024, dtype=np.bool_)
        self._reasons: list[str] = [""]
        self._numbers: dict[str, int] = {"": 0}
        self.count = 0

    def new(self, count: int) -> Ids:
        """So many new labels, each a set of its own."""
        first, last = self.count, self.count + count
        while last > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._reason = np.concatenate([self._reason, np.zeros_like(self._reason)])
            self._marks = np.concatenate([self._marks, np.zeros_like(self._marks)])
            self._headed = np.concatenate([self._headed, np.zeros_like(self._headed)])
        made = np.arange(first, last, dtype=np.int64)
        self._parent[first:last] = made
        self.count = last
        return made

    def find(self, ids: Ids) -> Ids:
        """The set of each label, as the smallest label in it."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            self._parent[ids] = above  # paths get half as long with every look
            roots = above
        self._parent[ids] = roots
        return roots

    def join(self, one: Ids, other: Ids) -> None:
        """Join the sets of `one` and `other`, element by element (arrays that broadcast)."""
        if one is other:
            return
        a, b = (np.ascontiguousarray(part).ravel() for part in np.broadcast_arrays(one, other))
        first, second = self.find(a), self.find(b)
        differ = first != second
        if not differ.any():
            return
        old = np.unique(np.concatenate([first[differ], second[differ]]))
        while differ.any():
            low, high = np.minimum(first, second)[differ], np.maximum(first, second)[differ]
            np.minimum.at(self._parent, high, low)
            first, second = self.find(first), self.find(second)
            differ = first != second
        roots = self.find(old)
        frozen = self._reason[old] != 0
        open_ = frozen & (self._reason[roots] == 0)
        self._reason[roots[open_]] = self._reason[old[open_]]

    def freeze(self, axis: Axis, reason: str) -> None:
        """Keep the sets of these labels; the first reason of a set stays."""
        if axis is None or not axis.size:
            return
        number = self._numbers.setdefault(reason, len(self._reasons))
        if number == len(self._reasons):
            self._reasons.append(reason)
        roots = self.find(axis.ravel())
        self._reason[roots[self._reason[roots] == 0]] = number

    def mark(self, axis: Axis, mark: int) -> None:
        """Say what these elements (not their sets) do for their unit."""
        if axis is not None:
            self._marks[axis.ravel()] |= mark

    def marks(self, ids: Ids) -> NDArray[np.uint8]:
        """What elements do for their unit."""
        return self._marks[ids]

    def head(self, axis: Axis) -> None:
        """Say that the sets of these labels are attention heads: products of matrices run along them."""
        if axis is not None:
            self._headed[axis.ravel()] = True

    def live(self) -> NDArray[np.bool_]:
        """By label: whether it stands for a set that something makes and nothing freezes."""
        roots = self.find(np.arange(self.count, dtype=np.int64))
        made = np.zeros(self.count, dtype=np.bool_)
        made[roots[(self._marks[: self.count] & PRODUCED) != 0]] = True
        made &= self._reason[: self.count] == 0
        made &= roots == np.arange(self.count)
        return made

    def headed(self) -> NDArray[np.bool_]:
        """By set: whether it is an attention head."""
        roots = self.find(np.arange(self.count, dtype=np.int64))
        found = np.zeros(self.count, dtype=np.bool_)
        found[roots[self._headed[: self.count]]] = True
        return found

    def reasons(self, ids: Ids) -> list[str]:
        """Why the sets of these labels are frozen; "" where they are not."""
        return [self._reasons[number] for number in self._reason[self.find(ids)]]
