"""2SSP: neurons from every layer first, then whole attentions one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import (
    Keep,
    Some,
    UnitEvidence,
    by_loss,
    by_share,
    check_budget,
    filled,
    kept_by_score,
    least,
    total,
)
from compression.parameters import parameter

if TYPE_CHECKING:
    from compression.anatomy.structures import Group


def attentions_to_remove(layers: int, sparsity: float, ratio: float, alpha: float) -> int:
    """round(B s^(r / alpha)): how many of B attentions go when the fraction s of what feed-forwards and
    attentions cost together is to go, a feed-forward costing r times an attention (Sandri et al. 2025, 2SSP,
    equation 5)."""
    wanted: float = layers * sparsity ** (ratio / alpha)
    return round(wanted)


@structure_allocations.register
@dataclass(frozen=True)
class TwoStage:
    """Stage one takes as many neurons from every layer, the lowest by the criterion; stage two takes
    attentions one by one, each time the one without which the loss, with all that went before, is lowest
    (Sandri et al. 2025, 2SSP). `attentions_to_remove` says how many go in stage two; neurons make up the
    rest.

    The rule takes no attention at sparsity 0 and all at 1. Where r >= alpha, s^(r / alpha) <= s: attentions
    then save no more than s / (1 + r) of the cost, and never too much. Where the rule would save more than
    the target (r < alpha), or leave more to neurons than there is, the nearest number goes that can meet it.
    Attentions that may not go as a whole (`remove_parts`) go last, down to the fewest heads that may stay. To
    meet the target, layers differ by a step of neurons.
    """

    name: ClassVar[str] = "two-stage"
    summary: ClassVar[str] = "As many neurons from every layer, then attentions by the loss without them."
    paper: ClassVar[str | None] = "2501.17771"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.loss", "unit.scores"})

    two_stage_alpha: float = parameter(
        1.5, "Two stages: the larger, the more attentions go, and the fewer neurons.", gt=0.0, le=100.0
    )
    two_stage_sequences: int = parameter(
        8, "Two stages: calibration sequences that attentions are judged by (the paper: 1).", ge=1, le=65536
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        check_budget(evidence, budget)
        heads = _furthest_first(evidence)
        neurons = Some(evidence, [group for group in evidence.groups if group.kind != "head"])
        count, saved = self._count(evidence, heads, neurons, budget)
        keep = {group.name: group.count for group in evidence.groups}
        rest = budget - sum(evidence.spent(group, group.count) for group in heads) + saved
        if neurons.groups:
            keep |= by_share(neurons, {group.name: 1.0 for group in neurons.groups}, rest)
        return filled(evidence, self._without(evidence, heads, keep, count), budget, by_loss(evidence))

    def _count(
        self, evidence: UnitEvidence, heads: Sequence[Group], neurons: Some, budget: int
    ) -> tuple[int, int]:
        """How many attentions go, and what that saves."""
        everything = {group.name: group.count for group in evidence.groups}
        whole, fewest = total(evidence, everything), least(evidence)
        ffn, gone = total(neurons, everything), whole - budget
        spare = ffn - total(neurons, fewest)
        each = [evidence.spent(one, one.count) - evidence.spent(one, fewest[one.name]) for one in heads]
        saves = [0, *accumulate(each)]
        at_least = next(number for number, saved in enumerate(saves) if saved + spare >= gone)
        at_most = max(number for number, saved in enumerate(saves) if saved <= gone)
        rule = 0
        if heads:
            ratio = ffn / (whole - ffn)
            rule = attentions_to_remove(len(heads), gone / whole, ratio, self.two_stage_alpha)
        count = max(at_least, min(rule, at_most))
        return count, saves[count]

    def _without(self, evidence: UnitEvidence, heads: Sequence[Group], keep: Keep, count: int) -> Keep:
        """The same without `count` attentions, chosen one by one."""
        fewest = least(evidence)
        for number in range(count):
            left = [group for group in heads if keep[group.name] == group.count]
            lowest = fewest[left[0].name]
            tried = []
            for place, group in enumerate(left):
                if fewest[group.name] == lowest:
                    changed = {**keep, group.name: lowest}
                    units = kept_by_score(evidence, changed)
                    tried.append((evidence.loss(units, self.two_stage_sequences), place, changed))
            _, _, keep = min(tried, key=lambda one: one[:2])
            evidence.progress(number + 1, count)
        return keep


def _furthest_first(evidence: UnitEvidence) -> list[Group]:
    """The attentions, those first that may lose most of their heads."""
    heads = [group for group in evidence.groups if group.kind == "head"]
    return sorted(heads, key=lambda group: evidence.steps(group)[0])
