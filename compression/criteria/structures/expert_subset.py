"""Not all experts are equal: the set of experts that gives the layer's output best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import torch
from torch import Tensor

from compression.anatomy.structures import Kind
from compression.criteria.structures import structure_criteria
from compression.criteria.units import EXPERTS, Units, chosen
from compression.expert_use import ExpertUse
from compression.parameters import parameter


@structure_criteria.register
@dataclass(frozen=True)
class ExpertSubset:
    """The set S of experts with the smallest ||F(X) - F_S(X)||_F^2, F_S being the routed experts of a layer
    of which only those of S are there, with the router's weights that they then have (Lu et al. 2024, section
    3.1). Where there are at most `subset_limit` sets, all are tried, as in the paper (8 experts have at most
    70); of more, experts go one by one, each time the one without which the error is smallest."""

    name: ClassVar[str] = "expert-subset"
    summary: ClassVar[str] = "The set of experts that gives the layer's output best, all sets tried if few."
    paper: ClassVar[str | None] = "2402.14800"
    needs: ClassVar[frozenset[str]] = frozenset({"routing", "expert.products"})
    kinds: ClassVar[frozenset[Kind]] = EXPERTS

    subset_limit: int = parameter(
        1000, "Of more sets of experts, not all are tried: experts go one by one.", ge=1, le=1_000_000
    )
    subset_tokens: int = parameter(
        2048, "So many calibration tokens, evenly spread, tell sets of experts apart.", ge=1, le=1 << 20
    )

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """1 for the units of the best set, 0 for the others: float64 [units]. ValueError without
        statistics."""
        use = units.used()
        if comb(units.count, units.keep) <= self.subset_limit:
            sets = list(combinations(range(units.count), units.keep))
            return chosen(_best(use, sets), units.count)
        stay = tuple(range(units.count))
        while len(stay) > units.keep:
            stay = _best(use, list(_without_one(stay)))
        return chosen(stay, units.count)


def _best(use: ExpertUse, sets: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The set with the smallest error, the first of equals."""
    count = len(use.counts)
    errors = use.errors([chosen(one, count).to(torch.bool) for one in sets])
    return sets[min(range(len(sets)), key=errors.__getitem__)]


def _without_one(stay: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for place in range(len(stay)):
        yield stay[:place] + stay[place + 1 :]
