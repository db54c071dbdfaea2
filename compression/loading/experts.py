"""The experts of a block: one parameter in memory, many weights in the files.

transformers keeps the experts of a layer as `experts.gate_up_proj` [experts, 2 * ffn, hidden] and
`experts.down_proj` [experts, hidden, ffn], whichever way they are stored. Each weight of an expert is offered
here as a parameter of its own that shares the memory of the whole, and that receives its share of the
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.slices import Slice
from compression.loading.weights import WeightReader, take

LEAVES = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Expert:
    """Where the weights of one expert are: their stored names (or those of slices)."""

    gate: str
    up: str
    down: str


@dataclass
class ExpertLayer:
    """The experts of one block: their `module`, and how the files name their weights.

    `pieces` maps the name of every weight to its place in the module's parameters.
    """

    module: nn.Module
    experts: list[Expert]
    pieces: dict[str, Slice]
    _parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def parameter(self, stored: str) -> nn.Parameter:
        """The weight [out, in] as a leaf that shares the memory of the whole; KeyError."""
        if stored not in self._parameters:
            piece = self.pieces[stored]
            whole = self.module.get_parameter(piece.tensor)
            self._parameters[stored] = nn.Parameter(take(whole.data, piece), requires_grad=False)
        return self._parameters[stored]

    def keep(self, kept: Tensor) -> None:
        """Let only some experts stay (int64, ascending), numbered anew; before `parameter` is asked."""
        for leaf in LEAVES:
            whole = self.module.get_parameter(leaf).data
            whole = whole.index_select(0, kept.to(whole.device))
            self.module._parameters[leaf] = nn.Parameter(whole, requires_grad=False)
        self.module.num_experts = len(kept)  # type: ignore[assignment]
        places = range(len(kept))
        self.pieces = {name: piece for name, piece in self.pieces.items() if piece.expert in places}
        self.experts = self.experts[: len(kept)]
        self._parameters.clear()

    def watch(self) -> None:
        """Let gradients of the whole reach the weights that ask for one."""
        self.module.register_forward_pre_hook(self._join)
        self.module.register_forward_hook(_leave, always_call=True)

    def _join(self, module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for leaf in LEAVES:
            asked = {
                self.pieces[name]: parameter
                for name, parameter in self._parameters.items()
                if parameter.requires_grad and self.pieces[name].tensor == leaf
            }
            if asked:
                whole = module.get_parameter(leaf).detach()
                # Beside the parameter of this name, and found before it, for this one forward.
                module.__dict__[leaf] = _Joined.apply(whole, tuple(asked), *asked.values())  # type: ignore[no-untyped-call]


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    for leaf in LEAVES:
        module.__dict__.pop(leaf, None)


class _Joined(torch.autograd.Function):
    """The whole [experts, rows, columns], whose gradient is handed to slices of it."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, pieces: tuple[Slice, ...], *parameters: Tensor) -> Tensor:
        ctx.pieces = pieces
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return None, None, *(take(gradient, piece) for piece in ctx.pieces)


def stored_experts(
    stored_name: Callable[[str], str | None], names: tuple[str, str, str], path: str, count: int
) -> list[Expert]:
    """How the files name the weights of `count` experts.

    `stored_name` gives the name of a tensor in the files, `names` are those of gate, up and down. What is
    missing gets its usual name, and shows when it is read.
    """
    gate, up, down = names
    first, second = (stored_name(f"{path}.{leaf}") for leaf in LEAVES)
    if first is not None and second is not None:
        return [
            Expert(Slice(first, number, "gate").name, Slice(first, number, "up").name,
                   Slice(second, number).name)
            for number in range(count)
        ]  # fmt: skip

    def stored(number: int, name: str) -> str:
        plain = f"{path}.{number}.{name}.weight"
        return stored_name(plain) or plain

    return [Expert(stored(number, gate), stored(number, up), stored(number, down)) for number in range(count)]


def load_experts(
    reader: WeightReader,
    module: nn.Module,
    experts: list[Expert],
    device: torch.device,
    dtype: torch.dtype,
) -> ExpertLayer:
    """Read the weights of all experts into the parameters of their module. Raises TensorMissing."""
    pieces: dict[str, Slice] = {}
    for number, expert in enumerate(experts):
        pieces[expert.gate] = Slice(LEAVES[0], number, "gate")
        pieces[expert.up] = Slice(LEAVES[0], number, "up")
        pieces[expert.down] = Slice(LEAVES[1], number)
    for leaf in LEAVES:
        shape = module.get_parameter(leaf).shape
        value = torch.empty(shape, dtype=dtype, device=device)
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    for stored, piece in pieces.items():
        take(module.get_parameter(piece.tensor).data, piece).copy_(reader.tensor(stored))
    layer = ExpertLayer(module, experts, pieces)
    layer.watch()
    return layer
