"""What every schedule is."""

from __future__ import annotations

from typing import ClassVar, Protocol


class Schedule(Protocol):
    """Gives the sparsities on the way to the target."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def steps(self, sparsity: float) -> tuple[float, ...]:
        """Increasing sparsities, the last of which is `sparsity` (0 < sparsity < 1)."""
        ...
