"""The same removal as a mask: the graph keeps its shape, and the removed units are zero where they are
read.

Slices of the weights that make, read or linearly follow a unit are zeroed. Where units are summed over
between two computed values (queries and keys, say) or by a reduction, no weight reads them: there the
value itself is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compression.graphs.cutting import Kept, Removed, removed_labels
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph


@dataclass(frozen=True)
class Masked:
    """The graph with zeroed slices, and by value the (axis, bool [size] of what stays) that it is masked
    with."""

    graph: Graph
    values: dict[str, list[tuple[int, Kept]]]

    def module(self) -> GraphModule:
        """A module that runs the masked graph."""
        made = GraphModule(self.graph)
        for value, masks in self.values.items():
            for axis, kept in masks:
                made.watch(value, _masking(axis, torch.from_numpy(kept)))
        return made


def _masking(axis: int, kept: Tensor) -> Callable[[Tensor], Tensor]:
    def apply(tensor: Tensor) -> Tensor:
        mask = kept.to(tensor.device)
        if tensor.shape[axis] != len(kept):  # the labels of an axis that holds the batch repeat with it
            mask = mask[: _period(mask)].repeat(tensor.shape[axis] // _period(mask))
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return torch.where(
            mask.reshape(shape), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)
        )

    return apply


def _period(mask: Tensor) -> int:
    from compression.graphs.probe import BATCHES

    return len(mask) // BATCHES[0]


def mask(anatomy: Anatomy, removed: Removed) -> Masked:
    """The graph with the units `removed` zeroed instead of taken out: it computes the same as the cut
    graph."""
    gone = removed_labels(anatomy, removed)
    initializers = dict(anatomy.graph.initializers)
    for name, axis in sorted(anatomy.zeroed):
        ids = anatomy.axes[name][axis]
        if ids is not None and gone[ids].any():
            array = np.array(initializers[name], copy=True)
            array[(slice(None),) * axis + (gone[ids],)] = 0
            initializers[name] = array
    values: dict[str, list[tuple[int, Kept]]] = {}
    for value, axis in anatomy.contractions:
        ids = anatomy.axes[value][axis]
        if ids is not None and gone[ids].any():
            values.setdefault(value, []).append((axis, ~gone[ids]))
    return Masked(replace(anatomy.graph, initializers=initializers), values)
