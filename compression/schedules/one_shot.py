"""One-shot: everything goes at once."""

from __future__ import annotations

from compression.schedules import schedules


@schedules.register
class OneShot:
    """A single step to the target."""

    name = "one-shot"
    summary = "Everything is removed at once."

    def steps(self, sparsity: float) -> tuple[float, ...]:
        """The target alone."""
        return (sparsity,)
