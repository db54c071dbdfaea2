"""Removing whole experts: what calibration knows of them, their pieces, and the smaller block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from compression.anatomy.structures import Group
from compression.block_pruning import BlockPruner
from compression.criteria.units import Piece, Units
from compression.expert_use import ExpertUse, ExpertUseCollector
from compression.loading.streamed import Block, States, StreamedModel
from compression.loading.weights import WeightReader
from compression.statistics import SAMPLE_TOKENS, Positions, sample_positions

# Elements of one unit that are read at a time.
CHUNK_ELEMENTS = 1 << 18


class ExpertPieces(Sequence[Piece]):
    """Everything that the experts of a layer are made of, in pieces [units, 1, elements] that are read when
    they are asked for: the experts of a layer are most of a model."""

    def __init__(self, reader: WeightReader, group: Group, device: torch.device) -> None:
        self._reader = reader
        self._device = device
        self._parts: list[tuple[list[tuple[str, int]], int]] = []
        for one in group.slices:
            size = math.prod(reader.shape(one.tensor)[1:])
            self._add([(one.tensor, unit * size) for unit in range(group.count)], size)
        for names in zip(*group.owned, strict=True):
            self._add([(name, 0) for name in names], math.prod(reader.shape(names[0])))

    def _add(self, places: list[tuple[str, int]], size: int) -> None:
        for start in range(0, size, CHUNK_ELEMENTS):
            found = [(name, offset + start) for name, offset in places]
            self._parts.append((found, min(CHUNK_ELEMENTS, size - start)))

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Piece: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Piece]: ...

    def __getitem__(self, index: int | slice) -> Piece | Sequence[Piece]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        places, count = self._parts[index]
        rows = [self._reader.elements(name, start, count).to(torch.float32) for name, start in places]
        return Piece(torch.stack(rows).unsqueeze(1).to(self._device))


class ExpertPruner(BlockPruner[ExpertUse]):
    """Cuts experts, with their rows of the router."""

    def _positions(self, states: States) -> Positions:
        scorer = self.settings.scorer()
        return sample_positions(states, getattr(scorer, "subset_tokens", SAMPLE_TOKENS))

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        groups: Sequence[Group],
        states: States,
        positions: Positions,
    ) -> ExpertUse:
        (group,) = groups
        with ExpertUseCollector(block, router(group), states, positions, self.settings.needs) as collector:
            for number in range(len(states)):
                collector.batch(number)
                hidden = model.run_batch(block, states, number)
                if not self.settings.sequential:
                    states.hidden[number] = hidden
        return collector.use()

    def _units(self, model: StreamedModel, group: Group, measured: ExpertUse | None) -> Units:
        pieces = ExpertPieces(model.reader, group, model.device)
        rows = model.reader.tensor(router(group)).to(torch.float32)
        keep = self.settings.widths[group.kind]
        return Units(group.name, group.count, pieces, keep=keep, use=measured, router=rows)

    def update_group(
        self, model: StreamedModel, group: Group, kept: Tensor, measured: ExpertUse | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        stays = torch.zeros(group.count, dtype=torch.bool).index_fill_(0, kept, True)
        squares = torch.zeros(group.count, dtype=torch.float64)
        for piece in ExpertPieces(model.reader, group, model.device):
            squares += piece.weight.to(torch.float64).square().sum((1, 2)).cpu()
        whole = float(squares.sum())
        fact = {
            "name": router(group),
            "layer": group.layer,
            "kind": group.kind,
            "units": group.count,
            "kept": len(kept),
            "weight_error": math.sqrt(float(squares[~stays].sum()) / whole) if whole > 0 else 0.0,
            "reconstruction_error": None if measured is None else measured.lost(stays),
        }
        return {}, fact

    def _shrink(
        self,
        block: Block,
        groups: Sequence[Group],
        kept: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
    ) -> None:
        (group,) = groups
        block.keep_experts(kept[group.name], [one.tensor for one in group.slices])


def router(group: Group) -> str:
    """The stored name of the weight that sends tokens to the experts of a group."""
    return group.slices[-1].tensor
