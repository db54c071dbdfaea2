"""Cutting units out of stored tensors, and zeroing them where they are: the two give the same model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from compression.anatomy.slices import stored_tensor
from compression.anatomy.structures import Group, Slice
from compression.evaluation.types import TensorSource
from compression.joined import joined, part_of

Cuts = Mapping[str, Sequence[tuple[Slice, Tensor]]]
"""Of every tensor that loses something: its slices, each with the mask bool [count] of the units that
stay."""


def cuts_of(groups: Iterable[Group], kept: Mapping[str, Tensor]) -> dict[str, list[tuple[Slice, Tensor]]]:
    """What every tensor loses. `kept` are the units int64 that stay, by the name of their group; a group that
    it does not name stays whole. ValueError for a unit that there is not."""
    found: dict[str, list[tuple[Slice, Tensor]]] = {}
    for group in groups:
        if group.name not in kept:
            continue
        units = kept[group.name].to("cpu", torch.int64)
        if units.numel() and not (0 <= int(units.min()) and int(units.max()) < group.count):
            raise ValueError(f"{group.name} has units 0 to {group.count - 1}")
        stays = torch.zeros(group.count, dtype=torch.bool)
        stays[units] = True
        for one in group.slices:
            found.setdefault(one.tensor, []).append((one, stays))
    return found


def moves(group: Group, kept: Tensor) -> list[tuple[str, str]]:
    """Of tensors that units own whole: (name in the smaller model, stored name) of each that takes another
    name when the units `kept` (int64, ascending) stay."""
    if not group.owned:
        return []
    return [
        pair
        for place, unit in enumerate(kept.tolist())
        if place != unit
        for pair in zip(group.owned[place], group.owned[unit], strict=True)
    ]


def spare(group: Group, width: int) -> list[str]:
    """The names of tensors that nothing has when so many units stay."""
    return [name for names in group.owned[width:] for name in names]


def places(shape: Sequence[int], cuts: Sequence[tuple[Slice, Tensor]]) -> dict[int, Tensor]:
    """By axis, the indices int64 of a tensor of this shape that stay, ascending; axes that lose nothing are
    left out."""
    masks: dict[int, Tensor] = {}
    for one, stays in cuts:
        mask = masks.setdefault(one.axis, torch.ones(shape[one.axis], dtype=torch.bool))
        mask[one.offset : one.offset + one.size * len(stays)] &= stays.repeat_interleave(one.size)
    return {axis: mask.nonzero().flatten() for axis, mask in masks.items()}


def cut(tensor: Tensor, cuts: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """The tensor without what goes, in its order."""
    for axis, kept in places(tensor.shape, cuts).items():
        tensor = tensor.index_select(axis, kept.to(tensor.device))
    return tensor


def expanded(tensor: Tensor, shape: Sequence[int], cuts: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """A cut tensor at its places in one of the dense `shape`, zero where something went."""
    for axis, kept in places(shape, cuts).items():
        size = list(tensor.shape)
        size[axis] = shape[axis]
        tensor = tensor.new_zeros(size).index_copy_(axis, kept.to(tensor.device), tensor)
    return tensor


def masked(tensor: Tensor, cuts: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """The tensor with zeros in the place of what goes."""
    return expanded(cut(tensor, cuts), tensor.shape, cuts)


def padded(tensor: Tensor, shape: Sequence[int], cuts: Sequence[tuple[Slice, Tensor]], width: int) -> Tensor:
    """A cut tensor with zeros in the place of further units, so that it has those of `width`: the units that
    stay first, in their order. `shape` is the dense one."""
    whole = expanded(tensor, shape, cuts)
    for axis in dict.fromkeys(one.axis for one, _ in cuts):
        order: list[Tensor] = []
        place = 0
        for one, stays in sorted((pair for pair in cuts if pair[0].axis == axis), key=lambda p: p[0].offset):
            order.append(torch.arange(place, one.offset))
            # What went is zero in the whole tensor.
            units = torch.cat([stays.nonzero().flatten(), (~stays).nonzero().flatten()])[:width]
            order.append((one.offset + units[:, None] * one.size + torch.arange(one.size)).flatten())
            place = one.offset + one.size * len(stays)
        order.append(torch.arange(place, shape[axis]))
        whole = whole.index_select(axis, torch.cat(order).to(whole.device))
    return whole


class CutSource:
    """The tensors of a source without some units, cut one by one when they are asked for (a `TensorSource`);
    with `zeros`, units are zeroed and shapes stay."""

    def __init__(self, source: TensorSource, cuts: Cuts, *, zeros: bool = False) -> None:
        self._source = source
        self._cuts = cuts
        self._zeros = zeros
        # Stored tensors of which slices lose something: all slices do.
        self._inside: dict[str, list[str]] = {}
        for name in cuts:
            if stored_tensor(name) != name:
                self._inside.setdefault(stored_tensor(name), []).append(name)

    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor after cutting."""
        if name in self._inside and not self._zeros:
            return tuple(self.tensor(name).shape)
        shape = list(self._source.shape(name))
        if name in self._cuts and not self._zeros:
            for axis, kept in places(shape, self._cuts[name]).items():
                shape[axis] = len(kept)
        return tuple(shape)

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor."""
        return self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor after cutting."""
        tensor = self._source.tensor(name)
        if name in self._inside:
            pieces = {one: part_of({name: tensor}, one) for one in self._inside[name]}
            return joined({one: self._cut(one, piece) for one, piece in pieces.items() if piece is not None})[
                name
            ]
        return self._cut(name, tensor)

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._cuts:
            return tensor
        return (masked if self._zeros else cut)(tensor, self._cuts[name])
