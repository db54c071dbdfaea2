"""The same removal as a mask: the graph keeps its shape, and the removed units are zero where they are
read.

Slices of the weights that make, read or linearly follow a unit are zeroed. Where units are summed over
between two computed values (queries and keys, say) or by a reduction, no weight reads them: there the
value itself is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph
from compression.graphs.removal import Kept, Removed, removed_labels


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
                made.watch(value, masking(axis, torch.from_numpy(kept)))
        return made


def masking(axis: int, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that makes an axis of a value zero where `kept`, bool [size], is not."""

    def apply(tensor: Tensor) -> Tensor:
        mask = kept.to(tensor.device)
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return torch.where(
            mask.reshape(shape), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)
        )

    return apply


def zeroed_places(anatomy: Anatomy, removed: Removed) -> Iterator[tuple[str, int, Kept]]:
    """The initializers, their axes and the places along these, bool [size], where masks are zero."""
    gone = removed_labels(anatomy, removed)
    for name, axis in sorted(anatomy.zeroed):
        ids = anatomy.axes[name][axis]
        if ids is not None and gone[ids].any():
            yield name, axis, gone[ids]


def mask(anatomy: Anatomy, removed: Removed) -> Masked:
    """The graph with the units `removed` zeroed instead of taken out: it computes the same as the cut
    graph."""
    gone = removed_labels(anatomy, removed)
    initializers = dict(anatomy.graph.initializers)
    for name, axis, places in zeroed_places(anatomy, removed):
        array = np.array(initializers[name], copy=True)
        array[(slice(None),) * axis + (places,)] = 0
        initializers[name] = array
    values: dict[str, list[tuple[int, Kept]]] = {}
    for value, axis in anatomy.contractions:
        ids = anatomy.axes[value][axis]
        if ids is not None and gone[ids].any():
            values.setdefault(value, []).append((axis, ~gone[ids]))
    return Masked(replace(anatomy.graph, initializers=initializers), values)


def disagreement(masked: Masked, smaller: Graph, inputs: Mapping[str, Tensor]) -> float:
    """By how much the outputs of the masked and of the cut graph differ at most, relative to the largest
    of an output (at least 1): what has to be below 1e-5 in float32 before a cut graph is given to
    anybody. Infinite where they are no numbers."""
    with torch.no_grad():
        wanted = masked.module().eval().run(inputs)
        found = GraphModule(smaller).eval().run(inputs)
    worst = 0.0
    for name, tensor in wanted.items():
        if tensor.numel() == 0:
            continue
        difference = (tensor.double() - found[name].double()).abs().max()
        relative = float(difference / tensor.double().abs().max().clamp(min=1.0))
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst
