"""Running statistics of batch normalisations, measured anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compression.graphs.batches import Batches, BatchInvalid
from compression.graphs.executor import GraphModule, to_numpy
from compression.graphs.graph import Graph


def reestimate(graph: Graph, batches: Batches) -> Graph:
    """The graph with the mean and variance of every BatchNormalization as the batches have them: means over
    the batches of their means and (unbiased) variances, each layer normalised by the batch's own meanwhile
    (as torch does in training mode with a cumulative average).

    A graph without BatchNormalization is given back as it is; `reconstruct` with "moments" does the same for
    those that were folded. BatchInvalid without batches, or for a batch with one value of a channel.
    """
    nodes = [node for node in graph.nodes if node.operator == "BatchNormalization"]
    if not nodes:
        return graph
    if not batches:
        raise BatchInvalid("statistics are measured on at least one batch")
    module = GraphModule(graph).train()
    sums: dict[str, Tensor] = {}

    def noting(names: tuple[str, str]) -> Callable[[Tensor], None]:
        def note(tensor: Tensor) -> None:
            values = tensor.detach().movedim(1, -1).flatten(0, -2)
            if len(values) < 2:
                raise BatchInvalid("a variance needs more than one value of a channel: give larger batches")
            variance, mean = torch.var_mean(values.double(), dim=0, correction=1)
            for name, one in zip(names, (mean, variance), strict=True):
                sums[name] = sums[name] + one if name in sums else one

        return note

    for node in nodes:
        module.watch(node.inputs[0], noting((node.inputs[3], node.inputs[4])))
    with torch.no_grad():
        for batch in batches:
            module.run(batch.inputs)
    arrays = dict(graph.initializers)
    for name, total in sums.items():
        arrays[name] = to_numpy(total / len(batches), np.asarray(arrays[name]))
    return replace(graph, initializers=arrays)
