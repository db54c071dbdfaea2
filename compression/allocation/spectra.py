"""What an allocation of ranks is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from compression.anatomy.ranks import RankBudget


class RankEvidence(Protocol):
    """What is known of the dense model, measured when it is first asked for."""

    def values(self, site: str) -> Sequence[float]:
        """The criterion's values of a weight's directions, never rising; see `low_rank.Spectrum`."""
        ...


class RankAllocation(Protocol):
    """Gives weights their ranks."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def allocate(self, evidence: RankEvidence, budget: RankBudget) -> dict[str, int]:
        """Ranks among the steps of each weight (weights left out stay dense) that together store at most
        `budget.total` elements. For reachable budgets."""
        ...
