"""Weights of experts that are stored together, by name. No torch.

Where a checkpoint stores one tensor for all experts of a layer (`experts.gate_up_proj` [experts, 2 * ffn,
hidden], `experts.down_proj` [experts, hidden, ffn]), a weight has no stored name of its own. It is called
TENSOR/EXPERT/gate, TENSOR/EXPERT/up (the first and the second half of the rows) or TENSOR/EXPERT (all rows).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_EXPERT = re.compile(r"\.experts\.(0|[1-9][0-9]{0,4})\.", re.ASCII)
_NAME = re.compile(r"(.+)/(0|[1-9][0-9]{0,4})(?:/(gate|up))?", re.ASCII)


@dataclass(frozen=True)
class Slice:
    """A weight inside the stored `tensor`: the rows of one `expert` that `part` says ("" = all)."""

    tensor: str
    expert: int
    part: str = ""

    @property
    def name(self) -> str:
        """The name of the weight; `slice_of` reads it back."""
        return f"{self.tensor}/{self.expert}" + (f"/{self.part}" if self.part else "")

    def rows(self, count: int) -> tuple[int, int]:
        """First row and the row after the last one, of the `count` rows that the tensor has for an expert."""
        half = count // 2
        return {"": (0, count), "gate": (0, half), "up": (half, count)}[self.part]


def slice_of(name: str) -> Slice | None:
    """The slice that a name means; None for the name of a whole tensor."""
    found = _NAME.fullmatch(name)
    return Slice(found[1], int(found[2]), found[3] or "") if found else None


def expert_of(name: str) -> int | None:
    """The number of the expert that a weight belongs to, by its name; None for what is no expert's."""
    piece = slice_of(name)
    if piece is not None:
        return piece.expert
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def stored_tensor(name: str) -> str:
    """The stored tensor in which a weight lies: its own, or the one it is a slice of."""
    piece = slice_of(name)
    return name if piece is None else piece.tensor
