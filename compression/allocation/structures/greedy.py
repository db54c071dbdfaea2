"""One step after another, each time the one that turns the predictions least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_loss, check_budget, filled, total
from compression.parameters import parameter


@structure_allocations.register
@dataclass(frozen=True)
class Greedy:
    """Of all groups the one goes down a level without which the model's predictions, with all that went
    before, are nearest to the dense model's; until the budget is met (Zhang et al. 2024, FinerCut, algorithm
    1, where a level is a whole attention or feed-forward: `remove_parts` "only")."""

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "Takes, one by one, the level or part that the predictions miss least."
    paper: ClassVar[str | None] = "2405.18218"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.divergence", "unit.scores"})

    greedy_sequences: int = parameter(
        8, "Greedy: calibration sequences that every step is judged by.", ge=1, le=65536
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`. The rest that levels leave is filled by the criterion's scores."""
        check_budget(evidence, budget)
        keep = {group.name: group.count for group in evidence.groups}
        whole = spent = total(evidence, keep)
        while spent > budget:
            tried = []
            for number, group in enumerate(evidence.groups):
                lower = [level for level in evidence.levels(group) if level < keep[group.name]]
                if lower:
                    changed = {**keep, group.name: lower[-1]}
                    tried.append((evidence.divergence(changed, self.greedy_sequences), number, changed))
            _, _, keep = min(tried, key=lambda one: one[:2])
            spent = total(evidence, keep)
            evidence.progress(min(whole - spent, whole - budget), whole - budget)
        return filled(evidence, keep, budget, by_loss(evidence))
