"""A transformers model that is never whole in memory: its blocks are loaded, run and dropped one after
another.

The model's own classes do all the work. A skeleton of the whole model is built without storage; embeddings,
final
norm and head get their weights; the blocks are replaced by ports. Running the skeleton's own forward once a
batch
tells every port what the model gives its block (masks, rotary tables, positions), so nothing here knows how a
family prepares those. Afterwards each block is loaded in turn and applied to the carried hidden states, and
the skeleton's own forward, with the last hidden states let in at the first port, gives logits or features.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.inspection import layers_key
from compression.device import DTYPES, compute_dtype
from compression.errors import CompressionError
from compression.loading.architectures import ARCHITECTURES
from compression.loading.blocks import Batch, Block, Call, Port, States
from compression.loading.experts import ExpertLayer, load_experts, stored_experts
from compression.loading.hidden import HiddenStates
from compression.loading.weights import TensorMissing, WeightReader

__all__ = ["Batch", "Block", "Call", "States", "StreamedModel"]

# Hidden states that an evaluation carries at once; more batches go through the blocks in several rounds.
GROUP_BYTES = 1 << 30


class ArchitectureUnsupported(CompressionError):
    """The engine has no streamed form of this architecture."""

    code = "architecture_unknown"


class _Captured(BaseException):
    """Ends a forward once the last port has heard what it needs; no error, so nothing may catch it."""


class StreamedModel:
    """A model on disk that answers batches block by block; see the module's text.

    `config` is the (admitted) configuration, read from `folder` when it is not given. `dtype` is the dtype
    weights
    are rounded to and computed in: by default that of the configuration, float32 for float16. `overlay` lays
    finished blocks over the stored ones; `keep_layers` lists the source layers that the model still has, in
    order.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | None = None,
        family: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        overlay: Path | Sequence[Path] | None = None,
        keep_layers: Sequence[int] | None = None,
    ) -> None:
        settings = dict(config) if config is not None else read_config(folder)
        self.folder = folder
        self.device = torch.device(device)
        self.dtype = dtype or compute_dtype(str(settings.get("dtype", "float32")))
        self.architecture = str((settings.get("architectures") or ["?"])[0])
        if self.architecture not in ARCHITECTURES:
            raise ArchitectureUnsupported(f"architecture {self.architecture!r} cannot be run by the engine")
        self.family = family or str(settings.get("model_type"))
        self.reader = WeightReader(folder, overlay)
        self.kept = (
            list(range(int(settings[layers_key(settings)]))) if keep_layers is None else list(keep_layers)
        )
        known = self._known = ARCHITECTURES[self.architecture]
        model_class = getattr(importlib.import_module(known.module), self.architecture)
        self.config = model_class.config_class.from_dict(trimmed_config(settings, self.kept))
        # A headless encoder may come without its pooler, which nothing here looks at.
        bare = known.pooler and self.reader.stored_name("pooler.dense.weight") is None
        with torch.device("meta"):
            self.skeleton: nn.Module = model_class(
                self.config, **({"add_pooling_layer": False} if bare else {})
            )
        self.skeleton.eval()
        self._templates = list(self.skeleton.get_submodule(known.blocks).children())
        self._ports = [Port(index, block, known.tuples) for index, block in enumerate(self._templates)]
        self._replace_blocks()
        self._materialise()
        if known.positions is not None:
            self._share_positions(known.positions)
        self._shared: dict[tuple[Any, ...], list[Tensor]] = {}

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(self._ports)

    @property
    def predicts(self) -> bool:
        """Whether the model gives logits, not only hidden states."""
        return "For" in self.architecture or self.architecture.endswith("LMHeadModel")

    @property
    def positions(self) -> bool:
        """Whether blocks answer with a bias of relative positions beside the hidden states."""
        return self._known.positions is not None

    def _replace_blocks(self) -> None:
        parent, _, name = self._known.blocks.rpartition(".")
        setattr(self.skeleton.get_submodule(parent), name, nn.ModuleList(self._ports))

    def _share_positions(self, path: str) -> None:
        """Let ports answer with the bias of relative positions, which the first block makes for all."""
        attention: Any = self._templates[0].get_submodule(path)
        name = f"{self._known.blocks}.{self.kept[0]}.{path}.relative_attention_bias.weight"
        attention.relative_attention_bias._parameters["weight"] = self._parameter(self._outer_name(name))

        def more(hidden: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
            given = args[1] if len(args) > 1 else None
            if given is None:
                given = attention.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
            return given, None

        for port in self._ports:
            port.more = more

    def _materialise(self) -> None:
        """Give embeddings, norms, head and computed buffers their values; everything outside the blocks."""
        loaded: dict[str, nn.Parameter] = {}
        for owner_name, module in self.skeleton.named_modules():
            computed = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
            if computed:
                # Parameters beside them stay without storage: what initialises those has no effect.
                for name, buffer in computed.items():
                    module._buffers[name] = torch.empty_like(buffer, device=self.device)
                self.skeleton._init_weights(module)  # type: ignore[operator]
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    stored = self._outer_name(f"{owner_name}.{name}" if owner_name else name)
                    if stored not in loaded:
                        loaded[stored] = self._parameter(stored)
                    module._parameters[name] = loaded[stored]

    def _outer_name(self, name: str) -> str:
        """The stored name of a tensor outside the blocks.

        As in the stock loader, what is tied is read from its partner only where it is not stored itself.
        """
        stored = self.reader.stored_name(name)
        if stored is None and getattr(self.config, "tie_word_embeddings", False):
            tied = dict(getattr(self.skeleton, "_tied_weights_keys", None) or {})
            tied |= {source: target for target, source in tied.items()}
            stored = self.reader.stored_name(tied[name]) if name in tied else None
        if stored is None:
            raise TensorMissing(f"the model's files have no tensor {name!r}, which {self.architecture} needs")
        return stored

    def _parameter(self, stored: str) -> nn.Parameter:
        # `copy` keeps the file's pages out of what runs: a loaded tensor may be a view of the file.
        value = self.reader.tensor(stored).to(device=self.device, dtype=self.dtype, copy=True)
        return nn.Parameter(value, requires_grad=False)

    def _stored_name(self, name: str) -> str | None:
        """The stored name of a tensor of the module tree, also where files call its place otherwise."""
        older = name
        for new, old in self._known.renames:
            older = older.replace(new, old)
        return self.reader.stored_name(name) or self.reader.stored_name(older)

    def _experts(self, index: int) -> str | None:
        """The path of the experts within a block, None without."""
        for name, _ in self._templates[index].named_modules():
            if self._known.experts is not None and name.endswith(".experts"):
                return str(name)
        return None

    def block_names(self, index: int) -> dict[str, str]:
        """Parameter name within block `index` -> name of the stored tensor (of the source layer); experts are
        left out."""
        names = {}
        experts = self._experts(index)
        for name, _ in self._templates[index].named_parameters():
            if experts is not None and name.startswith(f"{experts}."):
                continue
            full = f"{self._known.blocks}.{self.kept[index]}.{name}"
            stored = self._stored_name(full)
            if stored is None:
                raise TensorMissing(
                    f"the model's files have no tensor {full!r}, which {self.architecture} needs"
                )
            names[name] = stored
        return names

    def load_block(self, index: int) -> Block:
        """Load block `index` (of the kept ones) from the files, in evaluation mode, without gradients."""
        names = self.block_names(index)
        module = copy.deepcopy(self._templates[index], {id(self.config): self.config})
        for name, stored in names.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = self._parameter(stored)
        return Block(index, self.kept[index], module.eval(), names, self._load_experts(index, module))

    def _load_experts(self, index: int, block: nn.Module) -> ExpertLayer | None:
        path, names = self._experts(index), self._known.experts
        if path is None or names is None:
            return None
        full = f"{self._known.blocks}.{self.kept[index]}.{path}"
        module = block.get_submodule(path)
        count = module.get_parameter("down_proj").shape[0]
        experts = stored_experts(self._stored_name, names, full, count)
        return load_experts(self.reader, module, experts, self.device, self.dtype)

    def _forward(self, batch: Batch) -> Any:
        inputs = {name: value.to(self.device) for name, value in batch.items() if name != "labels"}
        if self._known.cache:
            inputs["use_cache"] = False  # type: ignore[assignment]
        return self.skeleton(**inputs)

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

    @torch.no_grad()
    def start(self, batches: Sequence[Batch]) -> States:
        """Embed the batches and note what every block will be called with."""
        states = States(batches, HiddenStates(), [])
        self._shared = {}
        for batch in states.batches:
            calls: list[Call] = []
            first: list[Tensor] = []

            def capture(
                index: int,
                hidden: Tensor,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                calls: list[Call] = calls,
                first: list[Tensor] = first,
            ) -> Tensor:
                if index == 0:
                    first.append(hidden)
                calls.append((self._share(args), {name: self._share(item) for name, item in kwargs.items()}))
                if index == self.layers - 1:
                    raise _Captured
                return hidden

            self._tap(capture)
            try:
                self._forward(batch)
            except _Captured:
                states.hidden.append(first[0])
                states.calls.append(calls)
        self._shared = {}
        return states

    def _tap(self, tap: Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Tensor] | None) -> None:
        for port in self._ports:
            port.tap = tap

    @torch.no_grad()
    def run_batch(self, block: Block, states: States, number: int) -> Tensor:
        """Output [b, s, hidden] of a block for one batch; the states stay as they are."""
        args, kwargs = states.calls[number][block.index]
        output = block.module(states.hidden[number], *args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def run_block(self, block: Block, states: States) -> None:
        """Carry the hidden states of every batch through a block."""
        for number in range(len(states)):
            states.hidden[number] = self.run_batch(block, states, number)

    def head(self, states: States, number: int, hidden: Tensor) -> Tensor:
        """What the model makes of the last hidden states [b, s, hidden] of one batch: logits [b, s,
        vocabulary] or [b, classes], or the last hidden state [b, s, hidden] of headless models. Gradients
        pass.
        """

        def inject(index: int, given: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            return hidden if index == 0 else given

        self._tap(inject)
        output = self._forward(states.batches[number])
        logits = getattr(output, "logits", None)
        result: Tensor = output.last_hidden_state if logits is None else logits
        return result

    @torch.no_grad()
    def finish(self, states: States) -> Iterator[Tensor]:
        """What `head` gives for every batch."""
        for number, hidden in enumerate(states.hidden):
            yield self.head(states, number, hidden)

    def outputs(
        self, batches: Sequence[Batch], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Tensor]:
        """Answers to the batches in order, one output a batch; `progress` hears of finished blocks.

        Batches whose hidden states would not fit into GROUP_BYTES together go through the blocks in groups.
        """
        groups = self._groups(batches)
        for number, group in enumerate(groups):
            states = self.start(group)
            for index in range(self.layers):
                self.run_block(self.load_block(index), states)
                if progress is not None:
                    progress(number * self.layers + index + 1, len(groups) * self.layers)
            yield from self.finish(states)

    def _places(self, batch: Batch) -> int:
        """About how many hidden states a batch has: tokens, or patches of images."""
        if "pixel_values" not in batch:
            return batch["input_ids"].numel()
        patch = self.config.patch_size
        down, across = (patch, patch) if isinstance(patch, int) else patch
        images, _, height, width = batch["pixel_values"].shape
        return images * (2 + (height // down) * (width // across))

    def _groups(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        """The batches in runs whose hidden states take at most GROUP_BYTES."""
        # Slices: batches of images are made when they are asked for, and their slices too.
        groups: list[Sequence[Batch]] = []
        start = held = 0
        for number, batch in enumerate(batches):
            size = self._places(batch) * int(self.config.hidden_size) * self.dtype.itemsize
            if number > start and held + size > GROUP_BYTES:
                groups.append(batches[start:number])
                start, held = number, 0
            held += size
        return [*groups, batches[start:]]


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; a dtype that it leaves out is that of the first stored tensor."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not settings.get("dtype"):
        reader = WeightReader(folder)
        stored = str(reader.dtype(reader.names()[0])).removeprefix("torch.")
        settings["dtype"] = settings.pop("torch_dtype", None) or stored
    return settings


def trimmed_config(settings: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The configuration of a model that has only these source layers: their number, and lists per layer
    cut.
    """
    key = layers_key(settings)
    layers = int(settings[key])
    result = dict(settings)
    if list(kept) == list(range(layers)):
        return result
    if result.get("layer_types"):
        result["layer_types"] = [result["layer_types"][index] for index in kept]
    result[key] = len(kept)
    return result


def storage_dtype(settings: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the configuration says its weights are stored in."""
    return DTYPES[str(settings.get("dtype", "float32"))]
