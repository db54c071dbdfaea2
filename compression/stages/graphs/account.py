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
from compression.graphs.reconstruction import Reconstructed

LISTED = 1000
"""So many groups, and so many tensors that stay whole, are listed."""
LOGGED = 8


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


def fits_account(done: Reconstructed, update: str) -> dict[str, Any]:
    """Which operators an update changed and how, and which of those that read less than before it did not,
    and why."""
    nodes = done.graph.producers()
    fitted = [{"operator": nodes[value].label, "how": how} for value, how in done.fitted.items()]
    left = [{"operator": nodes[value].label, "reason": why} for value, why in done.left.items()]
    return {
        "update": update,
        "fitted": fitted[:LISTED],
        "fitted_count": len(fitted),
        "left": left[:LISTED],
        "left_count": len(left),
    }


def told(fits: Mapping[str, Any]) -> list[str]:
    """The same for the job's log."""
    count = fits["fitted_count"]
    lines = [f"{count:,} operators were fitted." if count != 1 else "1 operator was fitted."]
    for one in fits["left"][:LOGGED]:
        lines.append(f"{one['operator']} was not fitted: {one['reason']}.")
    if fits["left_count"] > LOGGED:
        lines.append(f"{fits['left_count'] - LOGGED:,} more were not; the report lists them.")
    return lines


def graph_account(
    anatomy: Anatomy,
    units: Chosen,
    costs: tuple[Mapping[str, Any], Mapping[str, Any]],
    exactness: float,
    fits: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Groups with how many units they kept, what stays whole and by which operator; `sparsity` is the share
    of all parameters that is gone, `exactness` the difference of masked and cut outputs, `fits` what an
    update changed (None without one)."""
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
        "fits": None if fits is None else dict(fits),
    }
