"""A residual stream that each norm reads in a basis of its own: the tensors, and how the bases are found.

With A and B [D, d] of orthonormal columns, the bases of two norms that follow each other, the stream x A that
enters the first leaves the part between them as x A (A^T B) + f B, f being what the part adds: so a weight
B^T A [d, d] lies on the skip connection, and with d = D nothing changes (Ashkboos et al. 2024, section 3.2).
Cut, the model answers as the dense one whose stream is projected onto the columns of each basis before that
norm. Bases are found in that model: what a norm is given comes of blocks that are cut already (section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.inspection import Site
from compression.anatomy.residual import EPSILON, Axis, Stream, is_skip
from compression.anatomy.varied import PARTS
from compression.channel_pruning import ENDS, ChannelPruner, principal_directions
from compression.channel_statistics import StreamSums, real_rows
from compression.evaluation.types import TensorSource
from compression.loading.streamed import Block, States, StreamedModel
from compression.residual_surgery import StreamSource

START = "rotation-start"
Bases = Mapping[str, Tensor]
"""By the stored name of a norm: the basis float64 [D, d] that it reads the stream in."""


def norms_in_order(stream: Stream) -> list[str]:
    """The norms that a stream is read through, first to last: two a layer, then that before the head."""
    found = (one.norm for one in stream.axes if one.role == "read")
    return [*dict.fromkeys(found), stream.final]


class LayerStreamSource(StreamSource):
    """The tensors of a source with `width` channels, in bases of each norm's own, and those on the skip
    connections. `bases` must have the norms that the tensors asked for lie between."""

    def __init__(
        self,
        source: TensorSource,
        stream: Stream,
        width: int,
        bases: Bases,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(source, stream, torch.arange(width), device=device)
        self._untie()
        self._bases = {norm: basis[:, :width].to(device, torch.float64) for norm, basis in bases.items()}
        order = norms_in_order(stream)
        self._after = dict(pairwise(order))
        self._first = order[0]
        # What a part writes, the norm after the one that it reads through gets.
        self._read = {_part(one): one.norm for one in stream.axes if one.role == "read"}

    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        layers = range(self._stream.layers)
        return sorted([*super().names(), *(name for layer in layers for name in self._stream.skips(layer))])

    def changed(self, layer: int | None) -> list[str]:
        """As of `StreamSource`, with the weights on skip connections."""
        return [*super().changed(layer), *(() if layer is None else self._stream.skips(layer))]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        width = len(self._kept)
        return (width, width) if is_skip(name) else super().shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor."""
        return super().dtype(self._stream.table if is_skip(name) else name)

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in."""
        if not is_skip(name):
            return super().tensor(name)
        layer = next(one for one in range(self._stream.layers) if name in self._stream.skips(one))
        read = list(dict.fromkeys(one.norm for one in self._stream.of_layer(layer) if one.role == "read"))
        norm = read[self._stream.skips(layer).index(name)]
        found = self._bases[self._after[norm]].T @ self._bases[norm]
        return found.to("cpu", self.dtype(name)).contiguous()

    def _directions(self, axis: Axis) -> Tensor:
        if axis.role == "norm":
            return self._bases[axis.tensor]
        if axis.role == "table":
            return self._bases[self._first]
        return self._bases[axis.norm or self._after[self._read[_part(axis)]]]


def _part(axis: Axis) -> str:
    """The module that a weight or bias of attention or feed-forward belongs to."""
    return axis.tensor.rsplit(".", 2)[0]


class RotationPruner(ChannelPruner):
    """Cuts a stream in bases of each norm's own; to be made with `rotated`, of a model with packaged code.

    Steps beside those of `ChannelPruner`: `rotation-start` holds the first basis, `rotation-0000`... that
    before each feed-forward and that after it.
    """

    def run(self, sites: Sequence[Site]) -> list[dict[str, Any]]:
        """Find the bases and cut what is not finished; gives the facts of the weights, in the model's
        order."""
        model, order = self._open(), norms_in_order(self._stream)
        todo = [layer for layer in range(model.layers) if not self._store.has(_step(layer))]
        states = None
        if todo:
            assert self._calibration is not None
            states = model.start(self._calibration)
        if not self._store.has(START):
            assert states is not None
            self._store.save(START, {"next": self._basis_of(model, states, order[0])}, {})
        first = given = self._store.load(START)[0]["next"]
        for layer in range(model.layers):
            norms = order[2 * layer : 2 * layer + 3]
            if states is not None and layer <= todo[-1]:
                self._walk(model, states, layer, given, norms)
            found = self._store.load(_step(layer))[0]
            bases = (given, found["feed_forward"], found["next"])
            self._cut(f"hidden-{layer:04d}", layer, dict(zip(norms, bases, strict=True)), sites)
            given = found["next"]
            self._listener.progress(2 * layer + 2, 2 * model.layers)
        self._cut(ENDS, None, {order[0]: first, order[-1]: given}, sites)
        return [fact for _, name in self._steps() for fact in self._store.data(name)["weights"]]

    def _walk(
        self, model: StreamedModel, states: States, layer: int, given: Tensor, norms: Sequence[str]
    ) -> None:
        """Carry the states through a layer, and find its bases unless they are known."""
        block, known = model.load_block(layer), self._store.has(_step(layer))
        _project(states, given)
        _run_part(model, block, states, "head")
        if self._hook is not None:
            self._hook("mid_block")
        self._listener.progress(2 * layer + 1, 2 * model.layers)
        middle = (
            self._store.load(_step(layer))[0]["feed_forward"]
            if known
            else self._basis_of(model, states, norms[1])
        )
        _project(states, middle)
        _run_part(model, block, states, "neuron")
        if not known:
            after = self._basis_of(model, states, norms[2])
            self._store.save(_step(layer), {"feed_forward": middle, "next": after}, {})

    @property
    def _width(self) -> int:
        return self._settings.widths["hidden"]

    def _basis_of(self, model: StreamedModel, states: States, norm: str) -> Tensor:
        """The principal directions float64 [D, d] of what a norm makes of the stream, before its weight.
        Raises ActivationsNotFinite."""
        epsilon = float(getattr(model.config, EPSILON))
        sums = StreamSums(self._stream.hidden, model.device, products_too=True)
        ones = torch.ones(self._stream.hidden, device=model.device)
        for number in range(len(states)):
            for rows in real_rows(states, number, states.hidden[number]):
                sums.add(norm, rows, ones, epsilon)
        sums.close(norm)
        products = sums.statistics().products
        assert products is not None
        return principal_directions(products)[1][:, : self._width].contiguous()

    def _cut(self, name: str, layer: int | None, bases: Bases, sites: Sequence[Site]) -> None:
        if self._store.has(name):
            return
        device = self._open().device
        source = LayerStreamSource(self._source, self._stream, self._width, bases, device)
        tensors = {one: source.tensor(one) for one in source.changed(layer)}
        mine = [site for site in sites if site.layer == layer and site.name in tensors]
        facts = [self._fact(source, site, tensors[site.name]) for site in mine]
        if self._hook is not None:
            self._hook("mid_block")
        self._store.save(name, tensors, {"weights": facts})


class _Nothing(nn.Module):
    """Stands where a part does not run: adds nothing to the stream."""

    def __init__(self, *, pair: bool) -> None:
        super().__init__()
        self._pair = pair

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self._pair else nothing


def _run_part(model: StreamedModel, block: Block, states: States, kind: str) -> None:
    """Carry the states through one part of a block alone: "head" its attention, "neuron" its
    feed-forward."""
    (other,) = (name for one, (_, name) in PARTS.items() if one != kind)
    part = block.module.get_submodule(other)
    setattr(block.module, other, _Nothing(pair=kind == "neuron"))
    model.run_block(block, states)
    setattr(block.module, other, part)


@torch.no_grad()
def _project(states: States, basis: Tensor) -> None:
    """Project hidden states onto the columns of a basis [D, d]."""
    for number in range(len(states)):
        hidden = states.hidden[number]
        columns = basis.to(hidden.device, torch.float32)
        projected = (hidden.to(torch.float32) @ columns) @ columns.T
        states.hidden[number] = projected.to(hidden.dtype)


def _step(layer: int) -> str:
    return f"rotation-{layer:04d}"
