"""What the units of a graph are worth: the registry of criteria that need no data, and what they share.

A criterion gives a score float64 [units] for a group, higher for what matters more; None for a group that it
says nothing of, which then stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compression.graphs.dependencies import Anatomy, Group, Site
from compression.registry import Registry

Scores = NDArray[np.float64]


class GroupCriterion(Protocol):
    """One criterion. `seed` matters to those that draw."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def scores(self, anatomy: Anatomy, group: Group, seed: int) -> Scores | None: ...


CRITERIA: Registry[GroupCriterion] = Registry("criterion of graphs")


def over_slices(anatomy: Anatomy, site: Site, measure: Callable[[Scores], Scores]) -> Scores:
    """The sum of `measure` (element by element) over what every unit owns of a site; float64 [units]."""
    array = anatomy.graph.initializers[site.initializer].astype(np.float64)
    rest = tuple(axis for axis in range(array.ndim) if axis != site.axis)
    total: Scores = measure(array).sum(axis=rest)[site.places].sum(axis=1)
    return total
