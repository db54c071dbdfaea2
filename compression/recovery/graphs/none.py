"""No recovery: the cut graph is the result."""

from __future__ import annotations

from pydantic import BaseModel

from compression.graphs.graph import Graph
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import GraphRecoveryContext, GraphRecoveryResult, RecoveryOptions


@graph_recoveries.register
class NoRecovery:
    """Leaves the cut graph as it is."""

    name = "none"
    title = "No recovery"
    summary = "The weights of the cut graph are the result; nothing is trained."
    options: type[BaseModel] = RecoveryOptions

    def check(self, graph: Graph, batch: int | None) -> None:
        """Any graph can be left alone."""

    def recover(self, context: GraphRecoveryContext) -> GraphRecoveryResult:
        return GraphRecoveryResult(self.name, context.graph)
