"""How far a model with changed blocks is from the dense one, and its loss, over a few sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compression.gradients import sequence_loss, single_sequences
from compression.loading.streamed import Block, States, StreamedModel

Batch = dict[str, Tensor]
Changes = Mapping[int, Mapping[str, Tensor] | None]
"""By layer, tensors by stored name; None: the layer is left out."""
# Blocks and hidden states that are held so that they need not be loaded or computed again.
HELD_BYTES = 1 << 30


class Judge:
    """Runs the streamed model over the first `sequences` calibration sequences with some of its blocks
    changed, or without them.

    Where everything before the first changed layer fits into
    memory, it is computed once.
    """

    def __init__(self, model: StreamedModel, calibration: Sequence[Batch], sequences: int) -> None:
        self._model = model
        self._batches = single_sequences(calibration, sequences)
        self._blocks: dict[int, Block] = {}
        self._held = 0
        self._states = model.start(self._batches)
        self._before: dict[int, States] = {0: self._states.copy()}
        self._dense_last: list[Tensor] | None = None

    def divergence(self, changes: Changes) -> float:
        """Mean over tokens (or examples) of KL(dense || changed) of what the model predicts, in float32; for
        models without a head the mean of 1 - cos of the hidden states. Infinite where either overflows.
        """
        total, count = 0.0, 0
        dense = self._last({})
        changed = self._last(changes)
        for number in range(len(self._states)):
            with torch.no_grad():
                first = self._model.head(self._states, number, dense[number]).to(torch.float32)
                second = self._model.head(self._states, number, changed[number]).to(torch.float32)
            if self._model.predicts:
                reference = first.log_softmax(-1)
                values = (reference.exp() * (reference - second.log_softmax(-1))).sum(-1)
            else:
                values = 1 - torch.nn.functional.cosine_similarity(first, second, dim=-1)
            real = self._states.real(number)
            if real is not None and values.dim() == 2:
                values = values[real.to(values.device)]
            total += float(values.sum(dtype=torch.float64))
            count += values.numel()
        mean = total / max(1, count)
        # What overflows is no nearer than anything else; max() would take a NaN for 0.
        return max(0.0, mean) if math.isfinite(mean) else math.inf

    def similarity(self, changes: Changes) -> float:
        """Mean over real tokens of the cosine of the states after the last layer to the dense model's, in
        float64; minus infinity where either overflows."""
        total, count = 0.0, 0
        dense, changed = self._last({}), self._last(changes)
        for number, (first, second) in enumerate(zip(dense, changed, strict=True)):
            cosines = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=-1)
            real = self._states.real(number)
            values = cosines if real is None else cosines[real.to(cosines.device)]
            total += float(values.sum())
            count += values.numel()
        mean = total / max(1, count)
        return mean if math.isfinite(mean) else -math.inf

    def loss(self, changes: Changes) -> float:
        """Mean loss over the sequences."""
        hidden = self._last(changes)
        with torch.no_grad():
            losses = [
                float(sequence_loss(self._model.head(self._states, number, hidden[number]), batch))
                for number, batch in enumerate(self._batches)
            ]
        return sum(losses) / max(1, len(losses))

    def _last(self, changes: Changes) -> list[Tensor]:
        """The last hidden states with these changes."""
        if not changes and self._dense_last is not None:
            return self._dense_last
        first = min(changes, default=self._model.layers)
        start = max(layer for layer in self._before if layer <= first)
        self._states = self._before[start].copy()
        for index in range(start, self._model.layers):
            self._model.advance(self._states, index)
            if index == first or (not changes and index):
                self._keep(index, self._states)
            change = changes.get(index, {})
            if change is not None:
                with changed_block(self._block(index), change) as block:
                    self._model.run_block(block, self._states)
        if not changes:
            self._dense_last = list(self._states.hidden)
        return list(self._states.hidden)

    def _keep(self, index: int, states: States) -> None:
        """Hold the (dense) states before a layer, if there is room."""
        size = sum(hidden.numel() * hidden.element_size() for hidden in states.hidden)
        if index not in self._before and self._held + size <= HELD_BYTES:
            self._before[index] = states.copy()
            self._held += size

    def _block(self, index: int) -> Block:
        if index in self._blocks:
            return self._blocks[index]
        block = self._model.load_block(index)
        size = sum(value.numel() * value.element_size() for value in block.module.parameters())
        if self._held + size <= HELD_BYTES:
            self._blocks[index] = block
            self._held += size
        return block


class changed_block:
    """A block with tensors laid over its parameters for as long as it is entered."""

    def __init__(self, block: Block, changes: Mapping[str, Tensor]) -> None:
        self._block = block
        self._changes = changes
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> Block:
        for name, value in self._changes.items():
            parameter = self._block.parameter(name)
            # In place: the weight of an expert shares the memory of all experts.
            self._before[name] = parameter.data.clone()
            parameter.data.copy_(value)
        return self._block

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            self._block.parameter(name).data.copy_(value)
