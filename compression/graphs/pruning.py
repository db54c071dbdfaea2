"""Which units go, so that a graph keeps so much of its multiply-accumulates."""

from __future__ import annotations

from compression.graphs.allocation import SHARE_KEPT, Budget, Chosen, allocate
from compression.graphs.batches import Batches
from compression.graphs.criteria import CRITERIA, Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Collecting, Evidence, collect

__all__ = ["SHARE_KEPT", "Chosen", "choose_units", "evidence_for", "score_units"]


def choose_units(
    anatomy: Anatomy,
    macs_ratio: float,
    criterion: str = "group-l2",
    *,
    across_groups: bool = True,
    share_kept: float = SHARE_KEPT,
    seed: int = 0,
    evidence: Evidence | None = None,
) -> Chosen:
    """The units that go so that at most `macs_ratio` of the multiply-accumulates stay, and no more than
    needed.

    `across_groups`: scores, each divided by the mean of its group, are ranked over all groups; otherwise
    every group loses the same share. `evidence` is for criteria that need data (`evidence_for`); see
    `allocate` for other budgets. TargetUnreachable names what can be reached; UnknownEntry for a criterion.
    """
    if not 0 < macs_ratio <= 1:
        raise ValueError("macs_ratio lies above 0 and at most at 1")
    scores = score_units(anatomy, criterion, evidence, seed)
    budget = Budget(macs_ratio, share_kept=share_kept)
    return allocate(anatomy, scores, budget, "global" if across_groups else "local")


def evidence_for(
    anatomy: Anatomy, criterion: str, batches: Batches, how: Collecting | None = None
) -> Evidence | None:
    """What a criterion needs, collected over batches; None if it needs nothing."""
    needs = CRITERIA[criterion].needs
    return collect(anatomy, batches, needs, how) if needs else None


def score_units(
    anatomy: Anatomy, criterion: str, evidence: Evidence | None = None, seed: int = 0
) -> dict[str, Scores]:
    """By group, the scores of its units; groups that the criterion says nothing of are left out."""
    found = CRITERIA[criterion]
    scores = {group.name: found.scores(anatomy, group, seed, evidence) for group in anatomy.groups}
    return {name: one for name, one in scores.items() if one is not None}
