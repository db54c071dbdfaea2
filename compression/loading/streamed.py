"""A transformers model that is never whole in memory: its blocks are loaded, run and dropped one after
another.

The model's own classes do all the work. A skeleton of the whole model is built without storage; embeddings,
final
norm and head get their weights; the blocks are replaced by ports. Running the skeleton's own forward once a
batch
tells every port what the model gives its block (masks, rotary tables, positions), so nothing here knows how a
family prepares those. Afterwards each block is loaded in turn and applied to the carried hidden states, and
the skeleton's own forward, with the last hidden states let in at the first port, gives logits or features.

Where a model has several lists of blocks (an encoder and its decoder, stages), this is done list by list: the
forward with the hidden states of one list let in brings them to the next one, whatever lies between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.varied import PACKAGE, PREFIX
from compression.device import compute_dtype
from compression.errors import CompressionError
from compression.loading.architectures import ARCHITECTURES
from compression.loading.blocks import Batch, Block, Call, States
from compression.loading.experts import ExpertLayer, load_experts, stored_experts
from compression.loading.hidden import HiddenStates
from compression.loading.settings import read_config, storage_dtype, trimmed_config
from compression.loading.skeleton import Skeleton
from compression.loading.transformers_import import class_of
from compression.loading.weights import TensorMissing, WeightReader

__all__ = [
    "Batch", "Block", "Call", "States", "StreamedModel", "read_config", "storage_dtype", "trimmed_config",
]  # fmt: skip

# Hidden states that an evaluation carries at once; more batches go through the blocks in several rounds.
GROUP_BYTES = 1 << 30


class ArchitectureUnsupported(CompressionError):
    """The engine has no streamed form of this architecture."""

    code = "architecture_unknown"


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
        stock = self.architecture.removeprefix(PREFIX)
        if stock not in ARCHITECTURES:
            raise ArchitectureUnsupported(f"architecture {self.architecture!r} cannot be run by the engine")
        self.family = family or str(settings.get("model_type"))
        self.reader = WeightReader(folder, overlay)
        known = self._known = ARCHITECTURES[stock]
        module = known.module if stock == self.architecture else PACKAGE
        model_class = class_of(module, self.architecture)
        self.config = model_class.config_class.from_dict(trimmed_config(settings, keep_layers))
        self._skeleton = Skeleton(
            model_class, self.config, known, self.reader, self.device, self.dtype, keep_layers
        )
        self.kept = list(range(self.layers)) if keep_layers is None else list(keep_layers)

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(self._skeleton.templates)

    @property
    def configs(self) -> list[Any]:
        """The configurations that the model and its parts read while they run."""
        return self._skeleton.configs

    @property
    def predicts(self) -> bool:
        """Whether the model gives logits, not only hidden states."""
        return "For" in self.architecture or self.architecture.endswith("LMHeadModel")

    @property
    def positions(self) -> bool:
        """Whether blocks answer with a bias of relative positions beside the hidden states."""
        return self._known.positions is not None

    def _experts(self, index: int) -> str | None:
        """The path of the experts within a block, None without."""
        for name, _ in self._skeleton.templates[index].named_modules():
            if self._known.experts is not None and name.endswith(".experts"):
                return str(name)
        return None

    def block_names(self, index: int) -> dict[str, str]:
        """Parameter name within block `index` -> name of the stored tensor (of the source layer); experts are
        left out."""
        names = {}
        experts = self._experts(index)
        for name, _ in self._skeleton.templates[index].named_parameters():
            if experts is not None and name.startswith(f"{experts}."):
                continue
            full = f"{self._skeleton.places[index]}.{name}"
            stored = self._skeleton.stored_name(full)
            if stored is None:
                raise TensorMissing(
                    f"the model's files have no tensor {full!r}, which {self.architecture} needs"
                )
            names[name] = stored
        return names

    def load_block(self, index: int) -> Block:
        """Load block `index` (of the kept ones) from the files, in evaluation mode, without gradients."""
        names = self.block_names(index)
        module = self._skeleton.block(index)
        for name, stored in names.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = self._skeleton.parameter(stored)
        return Block(index, self.kept[index], module, names, self._load_experts(index, module))

    def _load_experts(self, index: int, block: nn.Module) -> ExpertLayer | None:
        path, names = self._experts(index), self._known.experts
        if path is None or names is None:
            return None
        full = f"{self._skeleton.places[index]}.{path}"
        module = block.get_submodule(path)
        count = module.get_parameter("down_proj").shape[0]
        experts = stored_experts(self._skeleton.stored_name, names, full, count)
        return load_experts(self.reader, module, experts, self.device, self.dtype)

    @torch.no_grad()
    def start(self, batches: Sequence[Batch]) -> States:
        """Embed the batches and note what every block of the first list will be called with."""
        states = States(batches, HiddenStates(), [])
        for batch in states.batches:
            entry = self._skeleton.enter(batch, 0)
            states.hidden.append(entry.hidden)
            states.calls.append(entry.calls)
        self._skeleton.forget()
        return states

    @torch.no_grad()
    def advance(self, states: States, index: int) -> bool:
        """Bring the states to block `index`; to be called before it is run. True if it begins another list
        of blocks: then what is between the lists has run, and the hidden states belong to other tokens.
        """
        number = self._skeleton.list_of(index)
        if number == states.group:
            return False
        first = self._skeleton.lists[number][0]
        if number != states.group + 1 or index != first:
            raise ValueError(f"block {index} does not follow list {states.group}")
        memory = states.hidden.beside()
        for place, batch in enumerate(states.batches):
            entry = self._skeleton.enter(batch, number, states.hidden[place])
            states.hidden[place] = entry.hidden
            states.calls[place][first:] = entry.calls
            if entry.memory is not None:
                memory.append(entry.memory)
        states.memory = memory if len(memory) else None
        states.group = number
        self._skeleton.forget()
        return True

    def crossing(self, states: States, place: int, number: int, hidden: Tensor) -> list[Tensor]:
        """What batch `place` brings into list `number` if the list before ends with `hidden` [b, s, hidden]:
        the first hidden states and, for a decoder, the encoder's output. Gradients pass."""
        entry = self._skeleton.enter(states.batches[place], number, hidden)
        self._skeleton.forget()
        return [entry.hidden] if entry.memory is None else [entry.hidden, entry.memory]

    def begins(self, index: int) -> int | None:
        """The number of the list that a block begins, from 1 on; None if it follows one or is the first."""
        number = self._skeleton.list_of(index)
        return number if number and index == self._skeleton.lists[number][0] else None

    @torch.no_grad()
    def alone(self, states: States, number: int) -> States:
        """One batch of the states, with what blocks are called with made anew: the kind of attention may be
        another one by now."""
        batch, first = states.batches[number], self._skeleton.lists[states.group][0]
        calls = self._skeleton.enter(batch, states.group).calls
        self._skeleton.forget()
        memory = None if states.memory is None else HiddenStates([states.memory[number]])
        found = [*states.calls[number][:first], *calls]
        return States([batch], HiddenStates([states.hidden[number]]), [found], states.group, memory)

    @torch.no_grad()
    def run_batch(self, block: Block, states: States, number: int) -> Tensor:
        """Output [b, s, hidden] of a block for one batch; the states stay as they are."""
        args, kwargs = states.call(number, block.index)
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
        output = self._skeleton.head(states.batches[number], hidden)
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
                self.advance(states, index)
                self.run_block(self.load_block(index), states)
                if progress is not None:
                    progress(number * self.layers + index + 1, len(groups) * self.layers)
            yield from self.finish(states)

    def _places(self, batch: Batch) -> int:
        """About how many hidden states a batch has: tokens, or patches of images."""
        if "pixel_values" not in batch:
            return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)
        patch = self.config.patch_size
        down, across = (patch, patch) if isinstance(patch, int) else patch
        images, _, height, width = batch["pixel_values"].shape
        return images * (2 + (height // down) * (width // across))

    def _groups(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        """The batches in runs whose hidden states take at most GROUP_BYTES."""
        # Slices: batches of images are made when they are asked for, and their slices too.
        groups: list[Sequence[Batch]] = []
        start = held = 0
        # Of stages of several widths, the first has most hidden states.
        width = int(getattr(self.config, "embed_dim", None) or self.config.hidden_size)
        for number, batch in enumerate(batches):
            size = self._places(batch) * width * self.dtype.itemsize
            if number > start and held + size > GROUP_BYTES:
                groups.append(batches[start:number])
                start, held = number, 0
            held += size
        return [*groups, batches[start:]]
