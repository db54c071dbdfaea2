"""What a streamed model consists of: ports where its blocks were, loaded blocks, batches under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compression.loading.experts import LEAVES, ExpertLayer
from compression.loading.hidden import HiddenStates

Batch = dict[str, Tensor]


class Port(nn.Module):
    """Stands where a block was; hands what it is given to `tap(index, hidden, args, kwargs)`.

    `answers`: the model expects a tuple of so many items, of which the hidden states are the first and `more`
    gives others; 0: the hidden states alone.
    """

    def __init__(self, index: int, template: nn.Module, answers: int) -> None:
        super().__init__()
        self.index = index
        self.answers = answers
        self.more: Callable[[Tensor, tuple[Any, ...]], tuple[Any, ...]] = lambda hidden, args: ()
        self.tap: Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Tensor] | None = None
        # A model's forward may read attributes of its blocks; a list keeps the template out of the module
        # tree.
        self._template = [template]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_template"][0], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        assert self.tap is not None
        output = self.tap(self.index, hidden_states, args, kwargs)
        if not self.answers:
            return output
        found = (output, *self.more(hidden_states, args))
        return found + (None,) * (self.answers - len(found))


@dataclass
class Block:
    """One loaded block: `module` runs it; `names` maps its parameters to the names of the stored tensors,
    but for `experts`, whose parameters hold many weights each."""

    index: int
    source: int
    module: nn.Module
    names: dict[str, str]
    experts: ExpertLayer | None = None

    def parameter(self, stored: str) -> nn.Parameter:
        """The parameter whose stored tensor (or slice of one) has this name; KeyError otherwise.

        That of an expert shares the memory of all experts: write to its data, do not replace it.
        """
        if self.experts is not None and stored in self.experts.pieces:
            return self.experts.parameter(stored)
        for name, other in self.names.items():
            if other == stored:
                return self.module.get_parameter(name)
        raise KeyError(stored)

    def write(self, stored: str, tensor: Tensor) -> None:
        """Give the stored tensor of this name another value, of all experts at once too; KeyError."""
        leaf = stored.rpartition(".")[2]
        if self.experts is not None and leaf in LEAVES and stored not in self.experts.pieces:
            self.experts.module.get_parameter(leaf).data.copy_(tensor)
        else:
            self.parameter(stored).data.copy_(tensor)

    def adopt(self, stored: str, tensor: Tensor) -> None:
        """Give the stored tensor of this name the value of another one, which is not to be changed later:
        where it can be, the parameter is that tensor from now on. KeyError."""
        parameter, inside = self.parameter(stored), self.experts is not None and stored in self.experts.pieces
        have = (parameter.dtype, parameter.device, parameter.shape, parameter.stride())
        if not inside and have == (tensor.dtype, tensor.device, tensor.shape, tensor.stride()):
            parameter.data = tensor
        else:
            parameter.data.copy_(tensor)

    def keep_experts(self, kept: Tensor, routers: Sequence[str]) -> None:
        """Make of the block the one that has only some experts (int64, ascending), numbered anew; `routers`
        are the stored tensors with a row for each."""
        assert self.experts is not None, "only blocks with experts lose some"
        for name in [name for name, stored in self.names.items() if stored in routers]:
            owner, _, leaf = name.rpartition(".")
            rows = self.module.get_parameter(name).data
            rows = rows.index_select(0, kept.to(rows.device))
            self.module.get_submodule(owner)._parameters[leaf] = nn.Parameter(rows, requires_grad=False)
        self.experts.keep(kept)

    def linears(self) -> dict[str, nn.Module]:
        """Modules that hold a stored `.weight`, by the stored name of that weight."""
        return {
            stored: self.module.get_submodule(name.removesuffix(".weight"))
            for name, stored in self.names.items()
            if name.endswith(".weight")
        }


Call = tuple[tuple[Any, ...], dict[str, Any]]

MEMORY = object()
"""Stands in a call for the encoder's output, which is kept with the hidden states."""


@dataclass
class States:
    """The batches under way: `hidden[k]` is [b, s, hidden] of batch k; `calls[k][i]` what block i is called
    with, for the lists of blocks up to number `group`, in which they are. In a decoder, `memory[k]` is the
    encoder's output [b, t, hidden], and `lent` the one that was last given to a block.
    """

    batches: Sequence[Batch]
    hidden: HiddenStates
    calls: list[list[Call]]
    group: int = 0
    memory: HiddenStates | None = None
    lent: Tensor | None = None

    def call(self, number: int, index: int, memory: Tensor | None = None) -> Call:
        """What block `index` is called with for a batch; `memory` in place of the encoder's output."""
        args, kwargs = self.calls[number][index]
        if self.memory is not None and any(item is MEMORY for item in args):
            self.lent = self.memory[number] if memory is None else memory
            args = tuple(self.lent if item is MEMORY else item for item in args)
        return args, kwargs

    def lend(self, number: int, index: int) -> tuple[Tensor, ...]:
        """The encoder's output of a batch as a leaf for gradients, if block `index` takes it."""
        args, _ = self.calls[number][index]
        if self.memory is None or not any(item is MEMORY for item in args):
            return ()
        return (self.memory[number].detach().requires_grad_(),)

    def copy(self) -> States:
        """States of their own, with room of their own, that begin where these are."""
        calls = [[*known] for known in self.calls]
        return States([*self.batches], HiddenStates(self.hidden), calls, self.group, self.memory)

    def real(self, number: int) -> Tensor | None:
        """Bool [b, s] of batch `number`: True where a token is text; None when nothing is padding."""
        return self._mask(number, "attention_mask" if self.memory is None else "decoder_attention_mask")

    def real_memory(self, number: int) -> Tensor | None:
        """The same of the encoder's output, in a decoder."""
        return self._mask(number, "attention_mask")

    def _mask(self, number: int, name: str) -> Tensor | None:
        mask = self.batches[number].get(name)
        return None if mask is None else mask.bool()

    def tokens(self, number: int) -> int:
        """Number of real tokens of batch `number`."""
        real = self.real(number)
        return self.places(number) if real is None else int(real.sum())

    def places(self, number: int) -> int:
        """Number of all places of batch `number`, b * s, padding too."""
        if number < len(self.hidden):
            return self.hidden[number].shape[:-1].numel()
        return self.batches[number]["input_ids"].numel()

    def __len__(self) -> int:
        return len(self.batches)
