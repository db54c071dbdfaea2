"""Pruning one weight: scores, mask, updates. What the block-by-block pruner and the allocations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.inspection import Site
from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, WeightCriterion, check_scores
from compression.granularity.base import Pattern, row_slices
from compression.granularity.rule import Rule
from compression.parameters import configured
from compression.seeds import site_generator
from compression.updates import updates
from compression.updates.base import Cut, Task, Update


@dataclass(frozen=True)
class PruneSettings:
    """What is removed: the chosen entry of each axis and how much. `parameters` are those of the entries."""

    criterion: str
    pattern: Pattern
    remove_total: int
    allocation: str = "uniform"
    comparison: str = "row"
    minimum_density: float = 0.05
    maximum_density: float = 1.0
    sequential: bool = True
    update: tuple[str, ...] = ()
    token_weight: str = "none"  # noqa: S105
    gradient: str = "exact"
    gradient_sequences: int = 64
    gradient_directions: int = 32
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def scorer(self) -> WeightCriterion:
        """The criterion with the job's parameters."""
        return configured(criteria[self.criterion], self.parameters)

    def chain(self) -> list[Update]:
        """The updates in order, with the job's parameters."""
        return [configured(updates[name], self.parameters) for name in self.update]

    @property
    def needs(self) -> frozenset[str]:
        """What criterion and updates ask of the calibration."""
        return criteria[self.criterion].needs.union(*(updates[name].needs for name in self.update))

    @property
    def gradients(self) -> tuple[str, ...]:
        """The kinds of gradient statistics that are needed, on the (general) calibration data."""
        return self._kinds("gradient.")

    @property
    def domain_gradients(self) -> tuple[str, ...]:
        """The same on the data of the domain."""
        return self._kinds("domain.gradient.")

    def _kinds(self, start: str) -> tuple[str, ...]:
        return tuple(sorted(need.removeprefix(start) for need in self.needs if need.startswith(start)))

    @property
    def unit(self) -> int:
        """Weights that go together: the size of a block, else 1."""
        return self.pattern.shape[0] * self.pattern.shape[1]


def score(
    settings: PruneSettings,
    site: Site,
    weight: Tensor,
    statistics: SiteStatistics | None,
    first_row: int = 0,
) -> Tensor:
    """Scores float32 [out, in] of a weight [out, in], or of its rows from the `first_row` on. Raises
    ScoresNotFinite."""
    generator = site_generator(settings.seed, site.name)
    scores = settings.scorer().score(weight, statistics, generator)
    return check_scores(scores, site.name, first_row)


@torch.no_grad()
def cut_site(
    settings: PruneSettings,
    site: Site,
    weight: Tensor,
    statistics: SiteStatistics | None,
    remove: int,
    *,
    has_bias: bool = False,
) -> Cut:
    """The pruned weight [out, in], the mask, what to add to the bias. Values are float32 after an update;
    without one they are the dense weight's own, in its dtype.
    """
    rule = Rule(settings.pattern, remove, settings.comparison)
    chain = settings.chain()
    if not chain and rule.by_row and getattr(settings.scorer(), "by_row", False):
        return _cut_rows(settings, site, weight, statistics, rule)
    if chain and chain[0].starts_over:
        dense = weight.to(torch.float32)
        cut = Cut(dense, torch.ones((1, 1), dtype=torch.bool, device=weight.device).expand_as(weight))
    else:
        mask = rule.mask(score(settings, site, weight, statistics), weight)
        if not chain:
            return Cut(weight.masked_fill(~mask, 0.0), mask)
        dense = weight.to(torch.float32)
        cut = Cut(dense.masked_fill(~mask, 0.0), mask)
    task = Task(dense, rule, statistics, site.name, has_bias)
    for update in chain:
        cut = update.apply(task, cut)
    return cut


def _cut_rows(
    settings: PruneSettings, site: Site, weight: Tensor, statistics: SiteStatistics | None, rule: Rule
) -> Cut:
    """The same for rows that are scored and compared alone, some at a time: nothing of the size of the whole
    weight is made in float32."""
    pruned, mask = torch.empty_like(weight), torch.empty_like(weight, dtype=torch.bool)
    quotas = rule.quotas(weight)
    for rows in row_slices(weight):
        part = weight[rows]
        scores = score(settings, site, part, statistics, first_row=rows.start)
        kept = rule.rows_mask(scores, part, None if quotas is None else quotas[rows])
        pruned[rows], mask[rows] = part.masked_fill(~kept, 0.0), kept
    return Cut(pruned, mask)
