"""Weights of experts that files store together: from slices to whole tensors of another width, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression.anatomy.slices import Slice, slice_of
from compression.loading.weights import take


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with slices [rows, columns] put together to the stored tensors [experts, rows, columns]
    that they are of. All slices of such a tensor are there, in one shape."""
    found: dict[str, Tensor] = {}
    pieces: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensors.items():
        piece = slice_of(name)
        if piece is None:
            found[name] = tensor
        else:
            pieces.setdefault(piece.tensor, {})[piece.expert, piece.part] = tensor
    for stored, parts in pieces.items():
        experts = range(1 + max(expert for expert, _ in parts))
        halves = [name for name in ("", "gate", "up") if (0, name) in parts]
        found[stored] = torch.stack(
            [torch.cat([parts[expert, half] for half in halves]) for expert in experts]
        )
    return found


def part_of(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A tensor by its name, or the slice of one that a name means (a view); None where neither is there."""
    piece: Slice | None = slice_of(name)
    if name in tensors or piece is None or piece.tensor not in tensors:
        return tensors.get(name)
    return take(tensors[piece.tensor], piece)
