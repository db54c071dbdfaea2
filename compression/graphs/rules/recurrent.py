"""LSTM, GRU and RNN: a hidden unit is a row of every gate, a column of the recurrence and a channel of
the states.
"""

from __future__ import annotations

from compression.graphs.graph import Node
from compression.graphs.labels import CONSUMED, PRODUCED, ZEROED
from compression.graphs.rules.table import Analysis, rule


@rule("LSTM", "GRU", "RNN")
def recurrent(analysis: Analysis, node: Node) -> None:
    """Both directions keep the same units: they share one number of them."""
    data, weight, again = node.inputs[0], node.inputs[1], node.inputs[2]
    plain = all(name in analysis.constants for name in (weight, again, node.input(3)) if name)
    hidden = analysis.of(again)[2]
    if not plain or hidden is None:
        return analysis.freeze_all(node, "has weights that are computed, or one hidden unit")
    labels = analysis.labels
    analysis.contract(node, [(data, 2), (weight, 2)])
    labels.mark(hidden, CONSUMED)
    rows = [analysis.of(name)[1] for name in (weight, again, node.input(3)) if name]
    for row in rows:
        assert row is not None
        labels.join(hidden, row.reshape(-1, hidden.size))
        labels.mark(row, PRODUCED | ZEROED)
    for name in (node.input(5), node.input(6)):
        if name:
            hidden = analysis.together(node, [hidden, analysis.of(name)[2]])
            for axis in analysis.of(name)[:1]:
                analysis.freeze(axis, node, "runs along it")
    for name in (data, weight, again, node.input(3)):
        if name:
            analysis.freeze(analysis.of(name)[0], node, "runs along it")
    batch = analysis.of(data)[1]
    analysis.freeze(batch, node, "runs along it")
    for place, name in enumerate(node.outputs):
        if name:
            rank = len(analysis.shape(name))
            analysis.put(node, [None] * (rank - 1) + [hidden], place)
    return None
