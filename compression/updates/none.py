"""No update: weights that stay keep their values, bit for bit."""

from __future__ import annotations

from compression.updates import updates
from compression.updates.base import Cut, Task


@updates.register
class NoUpdate:
    """W * mask, without touching a bit of what stays."""

    name = "none"
    summary = "Weights that stay keep their values, bit for bit."
    paper = None
    needs = frozenset[str]()
    starts_over = False

    def apply(self, task: Task, cut: Cut) -> Cut:
        """The cut itself."""
        return cut
