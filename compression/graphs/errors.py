"""What can go wrong with a network given as a graph. No torch."""

from __future__ import annotations

from compression.errors import CompressionError, ModelRejected


class GraphInvalid(ModelRejected):
    """A graph that is malformed or contradicts itself; the message names the node or value."""

    code = "graph_invalid"


class OperatorUnknown(ModelRejected):
    """An operator, or a form of one, that is not run here; the message names it and its node."""

    code = "operator_unknown"


class CutImpossible(CompressionError):
    """Units that cannot be removed as asked; the message names the value or the initializer."""

    code = "cut_impossible"
