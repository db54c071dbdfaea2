"""Everything at once, without training."""

from __future__ import annotations

from compression.graphs.schedules.base import ONE_SHOT, SCHEDULES, Outcome, Work


@SCHEDULES.register
class OneShot:
    """Scores the graph as it is and chooses once."""

    name = ONE_SHOT
    summary = "All units go at once; no weight is trained."
    paper: str | None = None
    trains = False
    scores = False

    def run(self, work: Work) -> Outcome:
        """The graph as it came."""
        return Outcome(work.anatomy.graph, work.choose(work.score(work.anatomy)))
