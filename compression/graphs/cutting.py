"""Removing units from a graph: a smaller graph with the same operators, and nothing of the units in it.

Initializers lose slices; what operators know of sizes (groups, hidden sizes, shapes, parts, places,
paddings) is written anew (`rewriting.py`). Names of nodes and values stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compression.graphs.dependencies import Anatomy
from compression.graphs.errors import CutImpossible
from compression.graphs.graph import Array, Graph, Node
from compression.graphs.removal import Cut, Removed, removed_labels
from compression.graphs.rewriting import rewrite


def cut(anatomy: Anatomy, removed: Removed) -> Graph:
    """The graph without the units `removed`. CutImpossible if an axis would lose all its elements."""
    made = Cut(anatomy, removed_labels(anatomy, removed))
    graph = anatomy.graph
    _check_not_empty(made)
    nodes: list[Node] = []
    for node in graph.nodes:
        changed = rewrite(made, node)
        nodes += made.before
        made.before.clear()
        nodes.append(changed)
    initializers = {name: _shorter(made, name, array) for name, array in graph.initializers.items()}
    smaller = replace(graph, nodes=tuple(nodes), initializers={**initializers, **made.added})
    return smaller.without_dead_parts()


def _check_not_empty(made: Cut) -> None:
    for value, axes in made.anatomy.axes.items():
        for axis, ids in enumerate(axes):
            if ids is not None and ids.size and made.gone[ids].all():
                raise CutImpossible(
                    f"nothing would be left of axis {axis} of {value!r}: keep at least one unit"
                )


def _shorter(made: Cut, name: str, array: Array) -> Array:
    for axis in range(array.ndim):
        kept = made.keep(name, axis)
        if kept is not None:
            array = np.compress(kept, array, axis=axis)
    return array
