"""What the matrices of a graph multiply: rows of inputs, and sums over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.anatomy.graph_sites import GraphSite
from compression.criteria.base import SiteStatistics, check_inputs
from compression.graphs.graph import Node
from compression.graphs.operators.convolution import padded, window
from compression.statistics import SAMPLE_TOKENS, spread_evenly
from compression.sums import Sums


@dataclass(frozen=True)
class _Geometry:
    """How the windows of a convolution lie. Inputs get zeros between them (`spacing` apart) and around them;
    then the place k of the kernel reads `counts` values from `starts[axis][k]` on, `strides` apart."""

    spacing: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    starts: Sequence[Sequence[int]]
    counts: Sequence[int]
    strides: Sequence[int]


def _convolution(site: GraphSite, node: Node, sizes: Sequence[int]) -> _Geometry:
    strides, dilations, before, after = window(node, sizes, site.kernel)
    counts = [
        (size + less + more - dilation * (width - 1) - 1) // stride + 1
        for size, less, more, width, stride, dilation in zip(
            sizes, before, after, site.kernel, strides, dilations, strict=True
        )
    ]
    starts = [
        [dilation * place for place in range(width)]
        for width, dilation in zip(site.kernel, dilations, strict=True)
    ]
    return _Geometry([1] * len(strides), before, after, starts, counts, strides)


def _transposed(site: GraphSite, node: Node, sizes: Sequence[int]) -> _Geometry:
    """A transposed convolution gives at t the sum over places k of the kernel of W_k z(t - k * dilation), z
    the inputs with zeros between them; then its ends are cut off."""
    strides, dilations, less, more = window(node, sizes, site.kernel)
    extra = list(node.integers("output_padding") or (0,) * len(strides))
    reach = [dilation * (width - 1) for dilation, width in zip(dilations, site.kernel, strict=True)]
    ends = [one + other for one, other in zip(reach, extra, strict=True)]
    counts = [
        (size - 1) * stride + 1 + end - cut - other
        for size, stride, end, cut, other in zip(sizes, strides, ends, less, more, strict=True)
    ]
    starts = [
        [cut + far - dilation * place for place in range(width)]
        for cut, far, dilation, width in zip(less, reach, dilations, site.kernel, strict=True)
    ]
    return _Geometry(strides, reach, ends, starts, counts, [1] * len(strides))


_GEOMETRY = {"Conv": _convolution, "ConvTranspose": _transposed}


def positions(site: GraphSite, node: Node, x: Tensor) -> int:
    """How many rows `input_rows` gives for each group."""
    if site.kind in _GEOMETRY:
        return x.shape[0] * math.prod(_GEOMETRY[site.kind](site, node, x.shape[2:]).counts)
    return x.numel() // site.shape[1]


def input_rows(site: GraphSite, node: Node, x: Tensor) -> Tensor:
    """The inputs x of a node as [groups, positions, in]: for each group of outputs, rows in the order of the
    site's columns, so that rows @ matrix.T is what the node gives there before its bias."""
    if site.kind in _GEOMETRY:
        return _windows(site, x, _GEOMETRY[site.kind](site, node, x.shape[2:]))
    if site.kind == "MatMul (left)":
        x = x.unsqueeze(-1) if x.ndim == 1 else x
        x = x.transpose(-1, -2)
    return x.reshape(1, -1, x.shape[-1])


def _windows(site: GraphSite, x: Tensor, how: _Geometry) -> Tensor:
    if any(step > 1 for step in how.spacing):
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], how.spacing, strict=True)]
        spaced = x.new_zeros((*x.shape[:2], *sizes))
        _cut(spaced, [slice(None, None, step) for step in how.spacing]).copy_(x)
        x = spaced
    x = padded(x, how.before, how.after, 0.0)
    pieces = []
    for place in itertools.product(*how.starts):
        cut = [
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(place, how.counts, how.strides, strict=True)
        ]
        pieces.append(_cut(x, cut).flatten(2))
    found = torch.stack(pieces, 1)
    batch, kernel, _, count = found.shape
    found = found.reshape(batch, kernel, site.groups, site.channels, count)
    return found.permute(2, 0, 4, 1, 3).reshape(site.groups, batch * count, site.shape[1])


def _cut(x: Tensor, slices: Sequence[slice]) -> Tensor:
    """A view of x [b, channels, ...] cut along the axes behind the channels."""
    everything = slice(None)
    return x[(everything, everything, *slices)]


class InputSums:
    """Sums over the inputs of one site, group by group, and the inputs of a sample of positions."""

    def __init__(self, site: GraphSite, needs: frozenset[str], device: torch.device) -> None:
        self._site = site
        # Products are of one group's inputs; everything else is summed for all groups at once.
        self._apart = "hessian" in needs
        count, width = site.groups, site.shape[1]
        sizes = [width] * count if self._apart else [width * count]
        self._sums = [Sums.zeros(size, device, needs) for size in sizes]
        self._sample: list[Tensor] = []

    def add(self, rows: Tensor, places: Tensor) -> None:
        """Add inputs [groups, positions, in]; those at `places` (int64) go into the sample."""
        self._sample.append(rows[:, places].to(torch.float32))
        if self._apart:
            for sums, part in zip(self._sums, rows, strict=True):
                sums.add(part, None)
        else:
            self._sums[0].add(rows.transpose(0, 1).flatten(1), None)

    def statistics(self) -> list[SiteStatistics]:
        """What is known of the inputs of each group. Raises ActivationsNotFinite."""
        found = [check_inputs(sums.statistics(), self._site.name) for sums in self._sums]
        if self._apart or self._site.groups == 1:
            return found
        whole = found[0]
        count = self._site.groups
        parts = [
            [None] * count if tensor is None else list(tensor.chunk(count))
            for tensor in (whole.means, whole.magnitudes)
        ]
        norms = whole.column_norms.chunk(count)
        return [
            SiteStatistics(norms[place], whole.tokens, parts[0][place], magnitudes=parts[1][place])
            for place in range(count)
        ]

    def sample(self) -> Tensor:
        """Inputs of the sampled positions, float32 [positions, groups * in]."""
        return torch.cat(self._sample, 1).transpose(0, 1).flatten(1)


def summed(
    site: GraphSite, entering: Iterable[tuple[Node, Sequence[Tensor]]], needs: frozenset[str]
) -> InputSums:
    """Sums over everything that enters a site: the inputs of each node that reads it, by batch."""
    parts = [(node, x) for node, batches in entering for x in batches]
    sums = InputSums(site, needs, parts[0][1].device)
    places = [torch.arange(positions(site, node, x)) for node, x in parts]
    with torch.no_grad():
        for (node, x), chosen in zip(parts, spread_evenly(places, SAMPLE_TOKENS), strict=True):
            sums.add(input_rows(site, node, x), chosen)
    return sums


def block_diagonal(site: GraphSite, values: Tensor) -> Tensor:
    """A matrix [out, in] of several groups as one [out, groups * in] with zeros where a group does not
    read."""
    if site.groups == 1:
        return values
    parts = values.reshape(site.groups, site.rows, site.shape[1])
    found = values.new_zeros(site.groups, site.rows, site.groups, site.shape[1])
    index = torch.arange(site.groups)
    found[index, :, index] = parts
    return found.reshape(site.shape[0], -1)
