"""Removing units block by block, whatever their kind: statistics, scores, smaller tensors, one finished step
a block.

Every layer keeps the same number of units, those with its highest scores. A finished step holds the block's
cut tensors by their stored names, so that laid over the dense files, under the config of the new widths, they
are the smaller model; where units own whole tensors, the files also lose the names that nothing takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from safetensors import safe_open
from torch import Tensor

from compression.anatomy.structures import Group, Widths
from compression.checkpoint import Hook, Store
from compression.criteria.structures import structure_criteria
from compression.criteria.units import StructureCriterion, Units, best, check_unit_scores
from compression.joined import joined
from compression.loading.streamed import Block, States, StreamedModel
from compression.loading.weights import WeightReader
from compression.parameters import configured
from compression.pruning import Batch, Listener
from compression.seeds import site_generator
from compression.statistics import Positions, sample_positions
from compression.surgery import cut, cuts_of, moves, spare
from compression.updates.structures import structure_updates
from compression.updates.units import ExpertUpdate, StructureUpdate

KEPT = ".kept"
M = TypeVar("M")
Seen = Callable[[StreamedModel, Group, Tensor, M | None], None]


@dataclass(frozen=True)
class StructureSettings:
    """What is removed: how many units of each kind stay, and by what. `parameters` are those of the
    entries."""

    criterion: str
    widths: Widths
    update: tuple[str, ...] = ()
    sequential: bool = False
    gradient: str = "exact"
    gradient_sequences: int = 64
    gradient_directions: int = 32
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def scorer(self) -> StructureCriterion:
        """The criterion with the job's parameters."""
        return configured(structure_criteria[self.criterion], self.parameters)

    def chain(self) -> list[StructureUpdate | ExpertUpdate]:
        """The updates in order, with the job's parameters."""
        return [configured(structure_updates[name], self.parameters) for name in self.update]

    @property
    def needs(self) -> frozenset[str]:
        """What criterion and updates ask of the calibration."""
        found = structure_criteria[self.criterion].needs
        return found.union(*(structure_updates[name].needs for name in self.update))


class BlockPruner(ABC, Generic[M]):
    """Cuts the groups of a model that is streamed from disk; M is what one block's calibration knows.

    `calibration` are token batches (None: no statistics). Finished blocks are steps `block-0000`... of
    `store`, with the units that stay (int64) under GROUP.kept.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        groups: Sequence[Group],
        settings: StructureSettings,
        calibration: Sequence[Batch] | None,
        store: Store,
        listener: Listener,
        hook: Hook | None = None,
    ) -> None:
        self._open = open_model
        self.all_groups = list(groups)
        self.keep = {group.name: group.kept(settings.widths[group.kind]) for group in groups}
        self.chosen: Mapping[str, Tensor] = {}
        self.settings = settings
        self.calibration = calibration
        self.store = store
        self._listener = listener
        self._hook = hook

    @property
    def groups(self) -> list[Group]:
        """The groups that lose units."""
        return [group for group in self.all_groups if self.keep[group.name] < group.count]

    def step_name(self, index: int) -> str:
        """Name of the finished step of a block."""
        return f"block-{index:04d}"

    def prepare(self) -> None:
        """Measure what is measured once, before the first block; kept as steps."""

    def run(self) -> list[dict[str, Any]]:
        """Cut every block that is not finished; gives the facts of all groups, in the model's order."""
        self.prepare()
        model = self._open()
        todo = [index for index in range(model.layers) if not self.store.has(self.step_name(index))]
        states = model.start(self.calibration) if todo and self.calibration is not None else None
        positions = self._positions(states) if states is not None else None
        for index in range(model.layers):
            if states is not None and index <= todo[-1] and model.advance(states, index):
                positions = self._positions(states)
            if not self.store.has(self.step_name(index)):
                self._prune_block(model, states, positions, index)
            elif states is not None and index < todo[-1]:
                self._pass_finished(model, states, index)
            self._listener.progress(index + 1, model.layers)
        return self.facts(model.layers)

    def look(self, seen: Seen[M]) -> None:
        """Score all units on the dense model, block by block; `seen` hears of every group."""
        model = self._open()
        states = model.start(self.calibration) if self.calibration is not None else None
        positions = self._positions(states) if states is not None else None
        for index in range(model.layers):
            groups = [group for group in self.all_groups if group.layer == index]
            if states is not None and model.advance(states, index):
                positions = self._positions(states)
            block, measured = model.load_block(index), None
            if states is not None and positions is not None:
                measured = self._collect(model, block, groups, states, positions)
                if self.settings.sequential:
                    model.run_block(block, states)
            for group in groups:
                seen(model, group, self._scores(model, group, measured), measured)
            self._listener.progress(index + 1, model.layers)

    def facts(self, layers: int) -> list[dict[str, Any]]:
        """What the finished steps say of every group."""
        return [fact for index in range(layers) for fact in self.store.data(self.step_name(index))["groups"]]

    def units(self) -> dict[str, list[list[int]]]:
        """The units that stay, by kind, layer by layer; kinds of which all stay are left out. Parts of a
        layer are told apart ("neuron.5" of expert 5, "neuron.shared", "head.cross"), each in all layers that
        have it."""
        found: dict[str, list[list[int]]] = {}
        kinds = {group.kind for group in self.groups}
        for group in (group for group in self.all_groups if group.kind in kinds):
            kept = list(range(group.count))
            if self.keep[group.name] < group.count:
                path = self.store.path(self.step_name(group.layer))
                with safe_open(path, framework="pt", device="cpu") as stream:
                    kept = stream.get_tensor(group.name + KEPT).tolist()
            found.setdefault(group.kind + (f".{group.part}" if group.part else ""), []).append(kept)
        return found

    def gone(self) -> frozenset[str]:
        """The stored tensors that the smaller model does not have."""
        return frozenset(name for group in self.groups for name in spare(group, self.keep[group.name]))

    def tell(self, index: int, facts: Sequence[Mapping[str, Any]]) -> None:
        """Log what is odd about the facts of a block."""

    # -- one block
    # ---------------------------------------------------------------------------------------------

    def _positions(self, states: States) -> Positions:
        """The tokens on which errors are computed."""
        return sample_positions(states)

    def _of_layer(self, index: int) -> list[Group]:
        return [group for group in self.groups if group.layer == index]

    def _pass_finished(self, model: StreamedModel, states: States, index: int) -> None:
        block = model.load_block(index)
        if self.settings.sequential:
            tensors, _ = self.store.load(self.step_name(index))
            groups = self._of_layer(index)
            kept = {group.name: tensors.pop(group.name + KEPT) for group in groups}
            self._shrink(block, groups, kept, tensors)
        model.run_block(block, states)

    def _prune_block(
        self, model: StreamedModel, states: States | None, positions: Positions | None, index: int
    ) -> None:
        block, groups = model.load_block(index), self._of_layer(index)
        measured = None
        if states is not None and positions is not None:
            measured = self._collect(model, block, groups, states, positions)
        if self._hook is not None:
            self._hook("mid_block")
        kept = {group.name: self._choose(model, group, measured) for group in groups}
        tensors = cut_tensors(model.reader, groups, kept)
        facts = []
        for group in groups:
            changed, fact = self.update_group(model, group, kept[group.name], measured)
            tensors |= changed
            facts.append(fact)
        self.tell(index, facts)
        tensors = joined(tensors)
        if states is not None and self.settings.sequential:
            self._shrink(block, groups, kept, tensors)
            model.run_block(block, states)
        told = {f"{name}{KEPT}": units for name, units in kept.items()}
        self.store.save(self.step_name(index), (tensors | told) or None, {"groups": facts})

    def _choose(self, model: StreamedModel, group: Group, measured: M | None) -> Tensor:
        """The units that stay: int64, ascending; the criterion's best unless others were `chosen`."""
        if group.name in self.chosen:
            return self.chosen[group.name]
        return best(self._scores(model, group, measured), self.keep[group.name])

    def _scores(self, model: StreamedModel, group: Group, measured: M | None) -> Tensor:
        """float64 [units]."""
        units = self._units(model, group, measured)
        generator = site_generator(self.settings.seed, group.name)
        return check_unit_scores(self.settings.scorer().score(units, generator).cpu(), group.name)

    # -- what depends on the kind
    # ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        groups: Sequence[Group],
        states: States,
        positions: Positions,
    ) -> M:
        """Run every batch through a block under hooks; without `sequential`, keep the outputs."""

    @abstractmethod
    def _units(self, model: StreamedModel, group: Group, measured: M | None) -> Units:
        """What the criterion is given."""

    @abstractmethod
    def update_group(
        self, model: StreamedModel, group: Group, kept: Tensor, measured: M | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that the updates change, and the facts of the group."""

    @abstractmethod
    def _shrink(
        self,
        block: Block,
        groups: Sequence[Group],
        kept: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Make a dense block answer as the one that its finished tensors are."""


def cut_tensors(
    reader: WeightReader, groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that change when only the units `kept` stay, by their names in the smaller model."""
    cuts = cuts_of(groups, kept)
    tensors = {name: cut(reader.tensor(name), cuts[name]) for name in cuts}
    for group in groups:
        tensors |= {new: reader.tensor(old) for new, old in moves(group, kept[group.name])}
    return tensors
