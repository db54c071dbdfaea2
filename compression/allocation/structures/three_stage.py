"""MultiPruner: whole parts, then neurons, then heads, each time what the loss rises least without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import (
    Keep,
    UnitEvidence,
    by_loss,
    check_budget,
    filled,
    kept_by_score,
    saved,
    total,
)
from compression.parameters import parameter

if TYPE_CHECKING:
    from compression.anatomy.structures import Group

Move = Callable[["Group", int], int | None]
"""From a group of which so many units stay, how many stay after its next step; None: it takes none."""


@structure_allocations.register
@dataclass(frozen=True)
class ThreeStage:
    """Whole attentions and feed-forwards go until their share of the target is met, then channels (neurons, a
    group of them at a time, the lowest of a layer by the criterion), then heads; each time that step of all
    layers after which the loss is lowest, with all that went before (Muñoz et al. 2025, MultiPruner;
    its code: shares 44:52:4, and of Llama 2 7B 1024 of 11008 channels at a time).

    A part that alone would save more than the target does not go. What a stage cannot take falls to the next;
    what the last one cannot, to steps of neurons and heads together. At the end single steps are given back
    as far as the target allows.
    """

    name: ClassVar[str] = "three-stage"
    summary: ClassVar[str] = "Whole parts, then neurons, then heads, each time by the loss without them."
    paper: ClassVar[str | None] = "2501.09949"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.loss", "unit.scores"})

    three_stage_parts: float = parameter(
        44.0, "Three stages: the share of whole parts in what goes (against the other two).", ge=0.0, le=1e6
    )
    three_stage_neurons: float = parameter(52.0, "Three stages: the share of neurons.", ge=0.0, le=1e6)
    three_stage_heads: float = parameter(4.0, "Three stages: the share of heads.", ge=0.0, le=1e6)
    three_stage_channels: float = parameter(
        0.09, "Three stages: the part of a layer's neurons that goes at a time.", gt=0.0, le=1.0
    )
    three_stage_part_sequences: int = parameter(
        16, "Three stages: calibration sequences that parts are judged by (the paper: 256).", ge=1, le=65536
    )
    three_stage_sequences: int = parameter(
        8, "Three stages: those that neurons and heads are judged by (the paper: 128).", ge=1, le=65536
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        check_budget(evidence, budget)
        whole = total(evidence, {group.name: group.count for group in evidence.groups})
        search = _Search(evidence, whole, whole - budget)
        shares = (self.three_stage_parts, self.three_stage_neurons, self.three_stage_heads)
        every = sum(shares) or 1.0

        def parts(group: Group, kept: int) -> int | None:
            fits = search.saved + saved(evidence, group, group.count, 0) <= search.target
            return 0 if kept == group.count and evidence.steps(group)[0] == 0 and fits else None

        def narrower(group: Group, kept: int) -> int | None:
            chunk = round(self.three_stage_channels * group.count) if group.kind == "neuron" else 1
            below = [step for step in evidence.steps(group) if 0 < step <= kept - max(1, chunk)]
            return below[-1] if below else None

        def anything(group: Group, kept: int) -> int | None:
            below = [step for step in evidence.steps(group) if step < kept]
            return narrower(group, kept) or (below[0] if below else None)

        wide, narrow = self.three_stage_part_sequences, self.three_stage_sequences
        search.run(shares[0] / every, parts, wide)
        search.run(sum(shares[:2]) / every, narrower, narrow, "neuron")
        search.run(1.0, narrower, narrow, "head")
        search.run(1.0, anything, narrow)
        return filled(evidence, search.keep, budget, by_loss(evidence))


class _Search:
    """What stays so far (`keep`), and what that saves (`saved`) of the `target`."""

    def __init__(self, evidence: UnitEvidence, whole: int, target: int) -> None:
        self._evidence = evidence
        self._whole = whole
        self.target = target
        self.keep: Keep = {group.name: group.count for group in evidence.groups}

    @property
    def saved(self) -> int:
        """The cost of all that went."""
        return self._whole - total(self._evidence, self.keep)

    def run(self, share: float, move: Move, sequences: int, kind: str | None = None) -> None:
        """Takes the step (of groups of a kind, or of all) after which the loss is lowest until this share of
        the target is met, or none is left."""
        while self.saved < share * self.target:
            tried = []
            for number, group in enumerate(self._evidence.groups):
                after = move(group, self.keep[group.name]) if kind in (None, group.kind) else None
                if after is not None:
                    changed = {**self.keep, group.name: after}
                    loss = self._evidence.loss(kept_by_score(self._evidence, changed), sequences)
                    tried.append((loss, number, changed))
            if not tried:
                return
            _, _, self.keep = min(tried, key=lambda one: one[:2])
            self._evidence.progress(min(self.saved, self.target), self.target)
