"""Removing whole experts: what calibration knows of them, their pieces, and the smaller block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import functional

from compression.anatomy.structures import Group
from compression.block_pruning import BlockPruner
from compression.criteria.units import ClusterCriterion, Piece, Units
from compression.expert_collector import ExpertUseCollector
from compression.expert_use import ExpertUse
from compression.loading.streamed import Block, States, StreamedModel
from compression.loading.weights import WeightReader
from compression.statistics import SAMPLE_TOKENS, Positions, sample_positions
from compression.updates.units import ExpertUpdate

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
        alone = functional.one_hot(kept, group.count).to(torch.float64)
        mixing, chain = alone, self.settings.chain()
        if chain:
            units, scorer = self._units(model, group, measured), self.settings.scorer()
            assert isinstance(scorer, ClusterCriterion), "resolving refuses others"
            clusters = scorer.clusters(units)
            for update in chain:
                assert isinstance(update, ExpertUpdate)
                mixing = update.mix(units, clusters, mixing)
        fact = {
            "name": router(group),
            "layer": group.layer,
            "kind": group.kind,
            "units": group.count,
            "kept": len(kept),
            "weight_error": self._weight_error(model, group, kept, mixing - alone),
            # What experts that were mixed give is no sum of what the dense ones gave.
            "reconstruction_error": measured.lost(alone.sum(0) > 0)
            if measured is not None and torch.equal(mixing, alone)
            else None,
        }
        return mixed(model.reader, group, kept, mixing), fact

    def _weight_error(self, model: StreamedModel, group: Group, kept: Tensor, change: Tensor) -> float:
        """||W - W'||_F / ||W||_F of all experts together; those that went are zero in W'."""
        stays = torch.zeros(group.count, dtype=torch.bool).index_fill_(0, kept, True)
        lost = whole = 0.0
        for piece in ExpertPieces(model.reader, group, model.device):
            rows = piece.weight.reshape(group.count, -1).to("cpu", torch.float64)
            squares = rows.square().sum(1)
            whole += float(squares.sum())
            lost += float(squares[~stays].sum() + (change @ rows).square().sum())
        return math.sqrt(lost / whole) if whole > 0 else 0.0

    def _shrink(
        self,
        block: Block,
        groups: Sequence[Group],
        kept: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
    ) -> None:
        (group,) = groups
        block.keep_experts(kept[group.name], [one.tensor for one in group.slices])
        for name, tensor in tensors.items():
            block.write(name, tensor)


def router(group: Group) -> str:
    """The stored name of the weight that sends tokens to the experts of a group."""
    return group.slices[-1].tensor


def mixed(reader: WeightReader, group: Group, kept: Tensor, mixing: Tensor) -> dict[str, Tensor]:
    """The tensors of the smaller model that differ from the dense ones, where the experts `kept` became sums
    of experts: `mixing` float64 [kept, units]. Summed in float64, and stored as they were."""
    alone = functional.one_hot(kept, group.count).to(torch.float64)
    places = (mixing != alone).any(1).nonzero().flatten().tolist()

    def blend(place: int, of: Callable[[int], Tensor]) -> Tensor:
        members = mixing[place].nonzero().flatten().tolist()
        parts = [of(one).to(torch.float64) * float(mixing[place, one]) for one in members]
        return torch.stack(parts).sum(0).to(of(members[0]).dtype)

    changed: dict[str, Tensor] = {}
    for one in group.slices if places else ():
        stored = reader.tensor(one.tensor)
        small = stored.index_select(0, kept)
        for place in places:
            small[place] = blend(place, stored.__getitem__)
        changed[one.tensor] = small
    for names in zip(*group.owned, strict=True):
        for place in places:
            changed[names[place]] = blend(place, lambda unit, names=names: reader.tensor(names[unit]))  # type: ignore[misc]
    return changed
