"""Prune: neurons and heads, in numbers of each layer's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compression.allocation.structures import structure_allocations
from compression.anatomy.structures import Group
from compression.anatomy.timed import target_budget
from compression.anatomy.unit_budget import UnitBudget
from compression.block_pruning import KEPT
from compression.errors import TargetUnreachable
from compression.evaluation.types import TensorSource
from compression.export.model import write_model
from compression.export.per_layer.layout import PerLayerSource, per_layer_settings
from compression.loading.weights import WeightReader
from compression.parameters import configured
from compression.stages.job import Loaded, Pruned
from compression.stages.timing import reach, timing_of
from compression.structured import StructurePruner
from compression.surgery import Cuts, cut, cuts_of, padded
from compression.unit_evidence import PrunedEvidence, allocation_step


def allocate(loaded: Loaded, pruner: StructurePruner, options: Mapping[str, Any]) -> None:
    """Tells the pruner how many units each group keeps, and which if the allocation says so; kept as step
    `allocation`. Raises TargetUnreachable."""
    budget = target_budget(loaded.specification, loaded.inspection, timing_of(loaded))
    if not budget.reachable:
        target = loaded.specification.target
        raise TargetUnreachable(
            f"target.{target.kind} {target.value} cannot be met by removing these units{reach(loaded)}"
        )
    entry = configured(structure_allocations[str(options["allocation"])], options)
    reader = WeightReader(loaded.folder)
    evidence = PrunedEvidence(
        pruner,
        loaded.dense_model,
        budget.spent,
        {group.name: _steps(group, budget, reader) for group in pruner.all_groups},
        loaded.work / "scratch" / "variants",
        loaded.observer,
        variants="unit.divergence" in entry.needs,
    )
    pruner.keep, pruner.chosen = allocation_step(pruner.store, entry, evidence, budget.total)


def _steps(group: Group, budget: UnitBudget, reader: WeightReader) -> Sequence[int]:
    """The numbers of units that a group may keep: not none, where that would leave a bias alone, or the first
    layer without the keys and values that generation counts tokens by."""
    steps = budget.steps[group.kind]
    needed = (group.kind == "head" and group.layer == 0) or _bias(group.output) in reader
    return [step for step in steps if step] if needed else steps


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def widths_for(loaded: Loaded, pruner: StructurePruner) -> dict[str, int]:
    """The width that all layers are padded to, by kind: the least that is no smaller than any layer's, and
    that a stock config can say."""
    known = {one.kind: one for one in loaded.inspection.structures}
    widths: dict[str, int] = {}
    for group in pruner.all_groups:
        widths[group.kind] = max(widths.get(group.kind, 1), pruner.keep[group.name])
    return {
        kind: min((n for n in known[kind].counts if n >= width), default=width)  # type: ignore[index]
        for kind, width in widths.items()
    }


def counts_of(pruner: StructurePruner) -> dict[str, list[int]]:
    """How many units stay, by kind, layer by layer."""
    found: dict[str, list[int]] = {}
    for group in pruner.all_groups:
        found.setdefault(group.kind, []).append(pruner.keep[group.name])
    return found


def write_packaged(
    loaded: Loaded, source: TensorSource, pruned: Pruned, folder: Path
) -> tuple[Path, Mapping[str, Any]]:
    """A padded model's weights as the folder of a model that comes with code of its own; the folder and its
    settings."""
    settings = per_layer_settings(pruned.settings(loaded), pruned.counts)
    trimmed = PerLayerSource(source, pruned.settings(loaded), pruned.counts)
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder, trimmed, settings, loaded.folder, dtype=loaded.output_dtype)
    return folder, settings


class Padding:
    """The finished blocks of a pruner brought to one width by zeros, so that a stock config says it."""

    def __init__(self, pruner: StructurePruner, reader: WeightReader, widths: Mapping[str, int]) -> None:
        self._pruner = pruner
        self._reader = reader
        self._widths = widths

    def files(self, layers: int) -> list[Path]:
        """The files of all blocks that lost anything, each kept as a step `padded-0000`..."""
        store = self._pruner.store
        for index in range(layers):
            if not store.has(self._name(index)):
                tensors, _ = store.load(self._pruner.step_name(index))
                store.save(self._name(index), dict(self._padded(tensors)) or None, {})
        paths = [store.path(self._name(index)) for index in range(layers)]
        return [path for path in paths if path.exists()]

    def _name(self, index: int) -> str:
        return f"padded-{index:04d}"

    def _cuts(self, tensors: Mapping[str, Tensor]) -> tuple[Cuts, dict[str, int]]:
        """What every tensor of a block lost, and the width it is brought to."""
        groups = [group for group in self._pruner.groups if group.name + KEPT in tensors]
        kept = {group.name: tensors[group.name + KEPT] for group in groups}
        widths = {one.tensor: self._widths[group.kind] for group in groups for one in group.slices}
        return cuts_of(groups, kept), widths

    def _padded(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        cuts, widths = self._cuts(tensors)
        for name, tensor in tensors.items():
            if name in cuts:
                yield name, padded(tensor, self._reader.shape(name), cuts[name], widths[name])
            elif not name.endswith(KEPT):
                yield name, tensor

    def masks(self) -> Mapping[str, Tensor]:
        """Keep-masks bool of the padded weights (not of their biases), made when they are asked for."""
        return _Masks(self)

    def mask(self, group: Group, name: str) -> Tensor:
        """The keep-mask of one padded tensor."""
        path = self._pruner.store.path(self._pruner.step_name(group.layer))
        with safe_open(path, framework="pt", device="cpu") as stream:
            kept = {
                one.name: stream.get_tensor(one.name + KEPT)
                for one in self._pruner.groups
                if one.layer == group.layer
            }
        cuts, widths = self._cuts({name + KEPT: units for name, units in kept.items()})
        shape = self._reader.shape(name)
        whole = cut(torch.ones(shape, dtype=torch.bool), cuts[name])
        return padded(whole, shape, cuts[name], widths[name])

    def weights(self) -> dict[str, Group]:
        """The weights that have zeros in the place of units, each with the group that they went from."""
        return {
            one.tensor: group
            for group in self._pruner.groups
            if self._pruner.keep[group.name] < self._widths[group.kind]
            for one in group.slices
            if not one.bias
        }


class _Masks(Mapping[str, Tensor]):
    def __init__(self, padding: Padding) -> None:
        self._padding = padding
        self._groups = padding.weights()

    def __getitem__(self, name: str) -> Tensor:
        return self._padding.mask(self._groups[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)
