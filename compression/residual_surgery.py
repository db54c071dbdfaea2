"""Turning the residual stream of a model into another basis, and cutting channels out of it, tensor by
tensor.

A stream x [tokens, D] becomes x Q, Q [D, D] being orthogonal. What writes to it is multiplied with Q on its
side of the stream, and so is what reads it, after the weight of the norm in between was multiplied into it:
an RMS norm without weights commutes with Q (Ashkboos et al. 2024, section 3). Norms have no weights
afterwards. A head that was tied to the embeddings gets a tensor of its own, since the last norm's weight goes
into it alone. What is cut is what `anatomy.residual` says: channels (of the new basis, if there is one), and
the gain that undoes the smaller mean goes into the norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compression.anatomy.residual import Axis, Stream
from compression.evaluation.types import TensorSource

CHUNK_ELEMENTS = 1 << 24


class StreamSource:
    """The tensors of a source with other channels, each made when it is asked for (a `TensorSource`).

    `kept` int64 are the channels that stay, ascending; `basis` float64 [D, D] has the directions that become
    channels as its columns (None: the channels stay as they are). Products are in float64 on `device`.
    """

    def __init__(
        self,
        source: TensorSource,
        stream: Stream,
        kept: Tensor,
        basis: Tensor | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._source = source
        self._stream = stream
        self._kept = kept
        self._basis = None if basis is None else basis[:, kept].to(device, torch.float64)
        self._axes = {one.tensor: one for one in stream.axes}
        self._untied = False
        if basis is not None:
            self._untie()
        self.gain = math.sqrt(stream.hidden / len(kept))

    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return sorted({*self._source.names(), *([self._stream.head] if self._untied else [])})

    def changed(self, layer: int | None) -> list[str]:
        """The tensors of one layer, or of what is outside all layers (None), that differ from the
        source's."""
        found = self._stream.changed(layer)
        return list(dict.fromkeys([*found, *([self._stream.head] if self._untied and layer is None else [])]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        shape = list(self._source.shape(self._stored(name)))
        if name in self._axes:
            shape[self._axes[name].axis] = len(self._kept)
        return tuple(shape)

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor."""
        return self._source.dtype(self._stored(name))

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in."""
        tensor = self._source.tensor(self._stored(name))
        axis = self._axes.get(name)
        if axis is not None:
            basis = self._directions(axis)
            tensor = self._cut(tensor, axis) if basis is None else self._turned(tensor, axis, basis)
        factor = self._factor(name, axis)
        if factor == 1.0:
            return tensor
        offset = self._stream.offset if axis is not None and axis.role in ("norm", "after") else 0.0
        return ((tensor.to(torch.float64) + offset) * factor - offset).to(tensor.dtype)

    def norm(self, name: str) -> Tensor:
        """What a norm multiplies with, float64 [D]."""
        return self._source.tensor(name).to(torch.float64) + self._stream.offset

    def _untie(self) -> None:
        """Give a tied head a tensor of its own."""
        self._untied = self._stream.tied
        if self._untied:
            self._axes[self._stream.head] = Axis(self._stream.head, 1, "head", None, self._stream.final)

    def _directions(self, axis: Axis) -> Tensor | None:
        """The directions float64 [D, d] that a tensor's axis is turned to; None: channels are cut."""
        return self._basis

    def _stored(self, name: str) -> str:
        return self._stream.table if self._untied and name == self._stream.head else name

    def _cut(self, tensor: Tensor, axis: Axis) -> Tensor:
        return tensor.index_select(axis.axis, self._kept.to(tensor.device))

    def _turned(self, tensor: Tensor, axis: Axis, basis: Tensor) -> Tensor:
        if axis.role == "norm":
            return torch.full((len(self._kept),), 1.0 - self._stream.offset, dtype=tensor.dtype)
        assert axis.role != "after", "norms of what is added have no place in another basis"
        weights = self.norm(axis.norm).to(basis.device) if axis.norm else None
        moved = tensor.movedim(axis.axis, -1)
        flat = moved.reshape(-1, self._stream.hidden)
        found = torch.empty((len(flat), len(self._kept)), dtype=tensor.dtype)
        step = max(1, CHUNK_ELEMENTS // self._stream.hidden)
        for start in range(0, len(flat), step):
            rows = flat[start : start + step].to(basis.device, torch.float64)
            rows = rows if weights is None else rows * weights
            found[start : start + step] = (rows @ basis).to(tensor.dtype)
        return found.reshape(*moved.shape[:-1], -1).movedim(-1, axis.axis).contiguous()

    def _factor(self, name: str, axis: Axis | None) -> float:
        """What a tensor is multiplied with, so that norms over fewer channels answer as before."""
        stream = self._stream
        together = stream.tied and not self._untied and stream.scaled
        if axis is None:
            return self.gain if name in stream.gained else 1.0
        if axis.role == "norm":
            return 1.0 if together and name == stream.final else self.gain
        if axis.role == "table" or (axis.role == "head" and together):
            return self.gain if stream.scaled else 1.0
        return self.gain if axis.role == "after" or name in stream.gained else 1.0
