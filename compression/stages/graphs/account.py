"""What the report says of a graph: its costs, and what could be cut in it and what not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compression.graphs.costs import Costs
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import trained_initializers
from compression.graphs.graph import Graph
from compression.graphs.pruning import Chosen

LISTED = 1000
"""So many groups, and so many tensors that stay whole, are listed."""


def cost(graph: Graph, counted: Costs, stored: int, dtype: str) -> dict[str, Any]:
    """The costs of a graph as a report has them; `stored` are the bytes of its files. All parameters count as
    prunable; multiply-accumulates are those of one sample."""
    arrays = [graph.initializers[name] for name in trained_initializers(graph)]
    kept = sum(int(np.count_nonzero(array)) for array in arrays)
    return {
        "parameters": counted.parameters,
        "nonzeros": kept,
        "prunable_parameters": counted.parameters,
        "prunable_nonzeros": kept,
        "sparsity": 1 - kept / counted.parameters,
        "bytes": stored,
        "dtype": dtype,
        "layers": 0,
        "macs": counted.macs,
        "macs_nonzero": counted.macs,
        "sequence_length": 1,
        "sites": [],
    }


def graph_account(
    anatomy: Anatomy, units: Chosen, costs: tuple[Mapping[str, Any], Mapping[str, Any]], exactness: float
) -> dict[str, Any]:
    """Groups with how many units they kept, what stays whole and by which operator; `sparsity` is the share
    of all parameters that is gone, `exactness` the difference of masked and cut outputs."""
    dense, pruned = costs
    groups = [
        {
            "name": group.name,
            "dense": group.units,
            "kept": group.units - len(units.get(group.name, ())),
            "tensors": len({site.initializer for site in group.sites}),
            "heads": group.heads,
        }
        for group in anatomy.groups
    ]
    uncut = [
        {"tensor": one.initializer, "axis": one.axis, "channels": one.channels, "reason": one.reason}
        for one in anatomy.uncut
    ]
    operators: dict[str, int] = {}
    for node in anatomy.graph.nodes:
        name = f"{node.domain}.{node.operator}" if node.domain else node.operator
        operators[name] = operators.get(name, 0) + 1
    return {
        "sparsity": 1 - pruned["parameters"] / dense["parameters"],
        "opset": anatomy.graph.opset,
        "nodes": len(anatomy.graph.nodes),
        "operators": operators,
        "units": sum(one["dense"] for one in groups),
        "units_kept": sum(one["kept"] for one in groups),
        "groups": groups[:LISTED],
        "group_count": len(groups),
        "uncut": uncut[:LISTED],
        "uncut_count": len(uncut),
        "exactness": exactness,
    }
