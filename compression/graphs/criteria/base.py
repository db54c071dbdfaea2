"""What the units of a graph are worth: the registry of criteria, and what they share.

A criterion says what it `needs` of the data (of `evidence.NEEDS`; nothing, for many) and gives a score
float64 [units] for a group, higher for what matters more; None for a group that it says nothing of, which
then stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compression.graphs.dependencies import Anatomy, Group, Site
from compression.graphs.evidence import Evidence, EvidenceMissing
from compression.registry import Registry

Scores = NDArray[np.float64]


class GroupCriterion(Protocol):
    """One criterion. `seed` matters to those that draw; `evidence` is given where `needs` is not empty."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None: ...


CRITERIA: Registry[GroupCriterion] = Registry("criterion of graphs")


def given(evidence: Evidence | None) -> Evidence:
    """The evidence itself; EvidenceMissing where there is none."""
    if evidence is None:
        raise EvidenceMissing("this criterion scores by data: collect evidence over batches first")
    return evidence


def over_slices(anatomy: Anatomy, site: Site, measure: Callable[[Scores], Scores]) -> Scores:
    """The sum of `measure` (element by element) over what every unit owns of a site; float64 [units]."""
    return slice_sums(measure(anatomy.graph.initializers[site.initializer].astype(np.float64)), site)


def slice_sums(array: Scores, site: Site) -> Scores:
    """The sum over what every unit owns of an array of the shape of a site's initializer; float64 [units]."""
    rest = tuple(axis for axis in range(array.ndim) if axis != site.axis)
    total: Scores = array.sum(axis=rest)[site.places].sum(axis=1)
    return total
