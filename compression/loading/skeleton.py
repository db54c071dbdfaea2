"""A model without its blocks: what is outside them has its values, ports stand where they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.loading.architectures import Streamed
from compression.loading.blocks import MEMORY, Batch, Call, Port
from compression.loading.transformers_import import without_storage
from compression.loading.weights import TensorMissing, WeightReader

Tap = Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Tensor]


class _Captured(BaseException):
    """Ends a forward once the last port has heard what it needs; no error, so nothing may catch it."""


@dataclass
class Entry:
    """How one batch enters a list of blocks: `hidden` [b, s, hidden] is what its first block is given,
    `memory` the output of the encoder that its blocks attend to (None without), `calls` the other arguments
    of every block of the list."""

    hidden: Tensor
    memory: Tensor | None
    calls: list[Call]


def compute_buffers(model: nn.Module, root: nn.Module, device: torch.device) -> None:
    """Give the computed buffers of a part of a model without storage their values."""
    for module in root.modules():
        computed = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        if computed:
            # Parameters beside them stay without storage: what initialises those has no effect.
            for name, buffer in computed.items():
                module._buffers[name] = torch.empty_like(buffer, device=device)
            model._init_weights(module)  # type: ignore[operator]


class Skeleton:
    """`model_class(config)` without storage for its blocks.

    `lists` are the numbers of the blocks of each list; blocks are numbered through all of them. `templates`
    are the blocks without storage, `places` their paths in the whole model, of which a single list may keep
    only the source blocks `kept`.
    """

    def __init__(
        self,
        model_class: Any,
        config: Any,
        known: Streamed,
        reader: WeightReader,
        device: torch.device,
        dtype: torch.dtype,
        kept: Sequence[int] | None = None,
    ) -> None:
        self._known, self._reader, self._device, self._dtype = known, reader, device, dtype
        # A headless encoder may come without its pooler, which nothing here looks at.
        bare = known.pooler and reader.stored_name("pooler.dense.weight") is None
        with without_storage():
            self.model: nn.Module = model_class(config, **({"add_pooling_layer": False} if bare else {}))
        self.model.eval()
        self.lists: list[range] = []
        self.templates: list[nn.Module] = []
        self.places: list[str] = []
        self._ports: list[Port] = []
        for path in known.lists(self.model):
            self._replace(path, kept)
        self._materialise()
        if known.positions is not None:
            for blocks in self.lists:
                self._share_positions(blocks, known.positions)
        self._shared: dict[tuple[Any, ...], list[Tensor]] = {}

    @property
    def configs(self) -> list[Any]:
        """The configurations that the model and its parts read while they run."""
        found = {
            id(module.config): module.config for module in self.model.modules() if hasattr(module, "config")
        }
        return list(found.values())

    def list_of(self, index: int) -> int:
        """The number of the list that a block is in."""
        return next(number for number, blocks in enumerate(self.lists) if index in blocks)

    def _replace(self, path: str, kept: Sequence[int] | None) -> None:
        """Put ports in the place of one list of blocks."""
        first = len(self.templates)
        blocks = list(self.model.get_submodule(path).children())
        self.lists.append(range(first, first + len(blocks)))
        ports = [Port(first + number, block, self._known.answers) for number, block in enumerate(blocks)]
        sources = range(len(blocks)) if kept is None else kept
        self.places += [f"{path}.{source}" for source in sources]
        self.templates += blocks
        self._ports += ports
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(ports))

    def _share_positions(self, blocks: range, path: str) -> None:
        """Let ports answer with the bias of relative positions, which a list's first block makes for all."""
        attention: Any = self.templates[blocks[0]].get_submodule(path)
        name = f"{self.places[blocks[0]]}.{path}.relative_attention_bias.weight"
        attention.relative_attention_bias._parameters["weight"] = self.parameter(self._outer_name(name))

        def more(hidden: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
            given = args[1] if len(args) > 1 else None
            if given is None:
                given = attention.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
            return (given,)

        for index in blocks:
            self._ports[index].more = more

    def _materialise(self) -> None:
        """Give embeddings, norms, head and computed buffers their values; everything outside the blocks."""
        loaded: dict[str, nn.Parameter] = {}
        self._compute_buffers(self.model)
        for owner_name, module in self.model.named_modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    stored = self._outer_name(f"{owner_name}.{name}" if owner_name else name)
                    if stored not in loaded:
                        loaded[stored] = self.parameter(stored)
                    module._parameters[name] = loaded[stored]

    def _compute_buffers(self, root: nn.Module) -> None:
        """Give the computed buffers of a module without storage their values."""
        compute_buffers(self.model, root, self._device)

    def _outer_name(self, name: str) -> str:
        """The stored name of a tensor outside the blocks.

        As in the stock loader, what is tied is read from its partners only where it is not stored itself.
        """
        names = [name]
        config: Any = self.model.config
        if getattr(config, "tie_word_embeddings", False):
            tied = dict(getattr(self.model, "_tied_weights_keys", None) or {})
            source = tied.get(name, name)
            names += [source, *(target for target, other in tied.items() if other == source)]
        stored = next(filter(None, map(self.stored_name, names)), None)
        if stored is None:
            architecture = type(self.model).__name__
            raise TensorMissing(f"the model's files have no tensor {name!r}, which {architecture} needs")
        return stored

    def stored_name(self, name: str) -> str | None:
        """The stored name of a tensor of the module tree, also where files call its place otherwise."""
        older = name
        for new, old in self._known.renames:
            older = older.replace(new, old)
        return self._reader.stored_name(name) or self._reader.stored_name(older)

    def parameter(self, stored: str) -> nn.Parameter:
        """A stored tensor on the device in the model's dtype."""
        # `copy` keeps the file's pages out of what runs: a loaded tensor may be a view of the file.
        value = self._reader.tensor(stored).to(device=self._device, dtype=self._dtype, copy=True)
        return nn.Parameter(value, requires_grad=False)

    def block(self, index: int) -> nn.Module:
        """A copy of a template in evaluation mode with its computed buffers; parameters have no storage."""
        module = copy.deepcopy(self.templates[index], {id(config): config for config in self.configs})
        self._compute_buffers(module)
        return module.eval()

    def forward(self, batch: Batch) -> Any:
        """The model's own forward, whatever the ports are tapped for."""
        inputs = {name: value.to(self._device) for name, value in batch.items() if name != "labels"}
        if self._known.cache:
            inputs["use_cache"] = False  # type: ignore[assignment]
        return self.model(**inputs)

    def head(self, batch: Batch, hidden: Tensor) -> Any:
        """The model's output for what its last block gave; gradients pass."""
        first = self.lists[-1][0]
        self._tap(lambda index, given, args, kwargs: hidden if index == first else given)
        return self.forward(batch)

    def enter(self, batch: Batch, number: int, hidden: Tensor | None = None) -> Entry:
        """How a batch enters list `number`, given what the last block of the list before gave (None: only
        the calls of the entry mean something, but for the first list). Gradients pass."""
        blocks = self.lists[number]
        before = self.lists[number - 1][0] if number else -1
        seen: list[Tensor] = []
        calls: list[Call] = []
        memory: Tensor | None = None

        def capture(index: int, given: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            nonlocal memory
            if index == before and hidden is not None:
                return hidden
            if index not in blocks:
                return given
            seen.append(given)
            place = self._known.memory
            if place is not None and args[place] is not None:
                memory = args[place]
                args = (*args[:place], MEMORY, *args[place + 1 :])
            calls.append((self._share(args), {name: self._share(item) for name, item in kwargs.items()}))
            if index == blocks[-1]:
                raise _Captured
            return given

        self._tap(capture)
        try:
            self.forward(batch)
        except _Captured:
            pass
        return Entry(seen[0], memory, calls)

    def forget(self) -> None:
        """Let go of the arguments that batches share."""
        self._shared = {}

    def _share(self, value: Any) -> Any:
        """The tensor itself, or an equal one that was met before: batches of one shape share their masks."""
        if isinstance(value, Tensor):
            known = self._shared.setdefault((tuple(value.shape), value.dtype), [])
            for other in known[-2:]:
                if other is value or torch.equal(other, value):
                    return other
            known.append(value)
            return value
        if isinstance(value, tuple):
            return tuple(self._share(item) for item in value)
        return value

    def _tap(self, tap: Tap) -> None:
        for port in self._ports:
            port.tap = tap
