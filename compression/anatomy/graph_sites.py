"""The matrices of single weights of a graph, as its structure alone tells. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compression.anatomy.inspection import Site
from compression.loading.onnx.matrices import Operation, find_matrices
from compression.specification import block, n_m


@dataclass(frozen=True)
class GraphSite(Site):
    """A weight of a graph as a matrix [out, in]. `kind` is the operator that multiplies by it.

    The inputs of a convolution are ordered by place in the kernel, then by channel: n:m and blocks run along
    the channels at one place, as sparse kernels want them. A convolution of several `groups` has one row for
    each output; the rows of a group (one after another) have inputs of their own.
    """

    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def extents(self) -> tuple[int, ...]:
        """Outputs, channels that each reads, sizes of the kernel."""
        return (self.shape[0], self.channels, *self.kernel)

    @property
    def channels(self) -> int:
        """Channels that each output reads."""
        return self.shape[1] // math.prod(self.kernel)

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        return self.shape[0] // self.groups

    def fits(self, granularity: str | None) -> bool:
        """Whether a pattern fits: n:m and blocks divide the channels at one place of the kernel, and
        the rows of blocks the outputs of a group."""
        pair, shape = n_m(granularity), block(granularity)
        if pair is not None:
            return self.channels % pair[1] == 0
        return shape is None or (self.rows % shape[0] == 0 and self.channels % shape[1] == 0)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphSite:
        """Reads what the inspection of a graph says of a matrix."""
        return cls(**{**data, "shape": tuple(data["shape"]), "kernel": tuple(data["kernel"])})


@dataclass(frozen=True)
class Weights:
    """The sites of a graph in the order in which they are first multiplied by. `readers` are the first
    outputs of the nodes that multiply by a site, `paths` those of the nodes that a stored tensor passes
    before; `whole` says of tensors that are multiplied by, and are no sites, why."""

    sites: tuple[GraphSite, ...]
    readers: Mapping[str, tuple[str, ...]]
    paths: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, str]


def find_weights(nodes: Sequence[Operation], shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """The sites among floating-point tensors of these shapes; `nodes` in topological order."""
    known = find_matrices(nodes, shapes)
    sites = tuple(GraphSite.from_json(one.to_json()) for one in known.found)
    return Weights(sites, known.readers, known.paths, known.whole)
