"""The table of operators: what each computes, in torch. `execute` looks an operator up and runs it.

An entry is a function of node, inputs and circumstances, which gives one tensor or a tuple of them.
Whatever is float is differentiable; integers (shapes and indices) stay on the CPU unless the data put
them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.graphs.errors import GraphInvalid, OperatorUnknown
from compression.graphs.graph import Node

TORCH_TYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64,
    16: torch.bfloat16,
}  # fmt: skip
"""torch's type of every TensorProto.DataType that is run."""


@dataclass(frozen=True)
class Circumstances:
    """What an operator may depend on besides its inputs: the version of the operator set and whether the
    network is being trained (BatchNormalization with statistics of the batch)."""

    opset: int
    training: bool = False


@dataclass(frozen=True)
class Inputs:
    """The inputs of one node; those that are left out are None."""

    node: Node
    tensors: Sequence[Tensor | None]

    def __getitem__(self, place: int) -> Tensor:
        """An input that must be there; GraphInvalid otherwise."""
        found = self.optional(place)
        if found is None:
            raise GraphInvalid(f"{self.node.label}: input {place} is missing")
        return found

    def __len__(self) -> int:
        return len(self.tensors)

    def optional(self, place: int) -> Tensor | None:
        """An input that may be left out."""
        return self.tensors[place] if place < len(self.tensors) else None

    def integers(self, place: int) -> list[int] | None:
        """The values of an input of integers; None where it is left out."""
        found = self.optional(place)
        return None if found is None else [int(item) for item in found.flatten().tolist()]

    def all(self) -> list[Tensor]:
        """All inputs, none of which may be missing."""
        return [self[place] for place in range(len(self.tensors))]


Execute = Callable[[Node, Inputs, Circumstances], "Tensor | tuple[Tensor, ...]"]
TABLE: dict[tuple[str, str], Execute] = {}
"""By domain and operator."""


def operator(*names: str, domain: str = "") -> Callable[[Execute], Execute]:
    """Register a function as what these operators compute."""

    def register(execute: Execute) -> Execute:
        for name in names:
            if (domain, name) in TABLE:
                raise ValueError(f"operator {name!r} is registered twice")
            TABLE[domain, name] = execute
        return execute

    return register


def check_known(nodes: Sequence[Node]) -> None:
    """OperatorUnknown for the first node whose operator is not in the table."""
    for node in nodes:
        if (node.domain, node.operator) not in TABLE:
            domain = f" of {node.domain}" if node.domain else ""
            raise OperatorUnknown(f"{node.label}: the operator {node.operator}{domain} is not run here")


def execute(node: Node, tensors: Sequence[Tensor | None], circumstances: Circumstances) -> tuple[Tensor, ...]:
    """The outputs of a node. OperatorUnknown for an operator that is not in the table or a form of it that is
    not run; GraphInvalid for inputs that do not fit."""
    found = TABLE.get((node.domain, node.operator))
    if found is None:
        check_known([node])
        raise AssertionError
    try:
        made = found(node, Inputs(node, tensors), circumstances)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        message = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise GraphInvalid(f"{node.label}: its inputs do not fit: {message}") from error
    return made if isinstance(made, tuple) else (made,)


def refuse(node: Node, what: str) -> OperatorUnknown:
    """The error for a form of an operator that is not run."""
    return OperatorUnknown(f"{node.label}: {what} is not run here")


def axis_of(axis: int, rank: int, node: Node) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise GraphInvalid(f"{node.label}: axis {axis} of a tensor of {rank} axes")
    return axis % rank if rank else 0
