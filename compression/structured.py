"""Removing neurons and heads, block by block: statistics, scores, smaller tensors, one finished step a block.

Every layer keeps the same number of units, those with its highest scores. A finished step holds the block's
cut tensors by their stored names, so that laid over the dense files, under the config of the new widths, they
are the smaller model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compression import gradients
from compression.anatomy.inspection import Site
from compression.anatomy.structures import Group, Slice, Widths
from compression.checkpoint import Hook, Store
from compression.criteria.structures import structure_criteria
from compression.criteria.units import Piece, StructureCriterion, Units, best, check_unit_scores
from compression.gradients import GradientFiles, logical
from compression.loading.streamed import Block, States, StreamedModel
from compression.parameters import configured
from compression.pruning import Batch, Listener
from compression.seeds import site_generator
from compression.statistics import Collector, Positions, reconstruction_error, sample_positions, weight_error
from compression.surgery import Cuts, cut, cuts_of, expanded
from compression.unit_statistics import UnitCollector
from compression.updates.structures import structure_updates
from compression.updates.units import StructureCut, StructureTask, StructureUpdate

KEPT = ".kept"
ROWS = "activations"


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

    def chain(self) -> list[StructureUpdate]:
        """The updates in order, with the job's parameters."""
        return [configured(structure_updates[name], self.parameters) for name in self.update]

    @property
    def needs(self) -> frozenset[str]:
        """What criterion and updates ask of the calibration."""
        found = structure_criteria[self.criterion].needs
        return found.union(*(structure_updates[name].needs for name in self.update))


@dataclass
class _Measured:
    """What one block's calibration knows."""

    units: UnitCollector
    rows: Collector
    outputs: Collector


class StructurePruner:
    """Cuts the groups of a model that is streamed from disk.

    `sites` are all weight sites by name; `calibration` are token batches (None: no statistics). Finished
    blocks are steps `block-0000`... of `store`, with the units that stay (int64) under GROUP.kept.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        groups: Sequence[Group],
        sites: Mapping[str, Site],
        settings: StructureSettings,
        calibration: Sequence[Batch] | None,
        store: Store,
        listener: Listener,
        hook: Hook | None = None,
    ) -> None:
        self._open = open_model
        self.groups = [group for group in groups if settings.widths[group.kind] < group.count]
        self._sites = sites
        self.settings = settings
        self.calibration = calibration
        self.store = store
        self._listener = listener
        self._hook = hook
        self._gradients = GradientFiles(store, ())

    def step_name(self, index: int) -> str:
        """Name of the finished step of a block."""
        return f"block-{index:04d}"

    def measure_gradients(self) -> None:
        """Measure the gradients, if the criterion asks for any; kept as steps."""
        settings = self.settings
        mean, masks = "gradient.mean" in settings.needs, "mask.square" in settings.needs
        if not (mean or masks):
            return
        assert self.calibration is not None
        names = dict.fromkeys(
            one.site for group in self.groups for one in group.slices if mean or one.site == group.output
        )
        sites = [self._sites[name] for name in names]
        batches = gradients.single_sequences(self.calibration, settings.gradient_sequences)
        kinds = ("mean",) if mean else ()
        units = {group.output: group.count for group in self.groups} if masks else {}
        chosen = (self._open, sites, batches, self.store, kinds)
        progress = self._listener.progress
        if settings.gradient == "exact":
            self._gradients = gradients.exact(*chosen, progress, units=units)
            return
        self._gradients = gradients.zeroth_order(
            *chosen, settings.gradient_directions, settings.seed, progress, units=units
        )

    def run(self) -> list[dict[str, Any]]:
        """Cut every block that is not finished; gives the facts of all groups, in the model's order."""
        self.measure_gradients()
        model = self._open()
        todo = [index for index in range(model.layers) if not self.store.has(self.step_name(index))]
        states = model.start(self.calibration) if todo and self.calibration is not None else None
        positions = sample_positions(states) if states is not None else None
        for index in range(model.layers):
            if not self.store.has(self.step_name(index)):
                self._prune_block(model, states, positions, index)
            elif states is not None and index < todo[-1]:
                self._pass_finished(model, states, index)
            self._listener.progress(index + 1, model.layers)
        return self.facts(model.layers)

    def facts(self, layers: int) -> list[dict[str, Any]]:
        """What the finished steps say of every group."""
        return [fact for index in range(layers) for fact in self.store.data(self.step_name(index))["groups"]]

    def units(self) -> dict[str, list[list[int]]]:
        """The units that stay, by kind, layer by layer; kinds of which all stay are left out."""
        found: dict[str, list[list[int]]] = {}
        for group in self.groups:
            with safe_open(
                self.store.path(self.step_name(group.layer)), framework="pt", device="cpu"
            ) as stream:
                kept: list[int] = stream.get_tensor(group.name + KEPT).tolist()
            found.setdefault(group.kind, []).append(kept)
        return found

    def _of_layer(self, index: int) -> list[Group]:
        return [group for group in self.groups if group.layer == index]

    def _pass_finished(self, model: StreamedModel, states: States, index: int) -> None:
        block = model.load_block(index)
        if self.settings.sequential:
            tensors, _ = self.store.load(self.step_name(index))
            groups = self._of_layer(index)
            kept = {group.name: tensors.pop(group.name + KEPT) for group in groups}
            self._put(block, tensors, cuts_of(groups, kept))
        model.run_block(block, states)

    def _put(self, block: Block, tensors: Mapping[str, Tensor], cuts: Cuts) -> None:
        """Give a dense block the values of its cut tensors, zeros in the place of what went."""
        for name, tensor in tensors.items():
            data = block.parameter(name).data
            data.copy_(expanded(tensor, data.shape, cuts[name]) if name in cuts else tensor)

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        groups: Sequence[Group],
        states: States,
        positions: Positions,
    ) -> _Measured:
        """Run every batch through a block under the hooks; without `sequential`, keep the outputs."""
        needs = self.settings.needs
        rows = {one.site for group in groups for one in group.slices if one.site != group.output}
        units = UnitCollector(block, groups, states)
        inputs = Collector(block, sorted(rows) if ROWS in needs else [], states, positions)
        outputs = [group.output for group in groups]
        found = _Measured(units, inputs, Collector(block, outputs, states, positions, needs & {"hessian"}))
        with units, inputs, found.outputs:
            for number in range(len(states)):
                for collector in (units, inputs, found.outputs):
                    collector.batch(number)
                hidden = model.run_batch(block, states, number)
                if not self.settings.sequential:
                    states.hidden[number] = hidden
        return found

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
        cuts = cuts_of(groups, kept)
        tensors = {name: cut(model.reader.tensor(name), cuts[name]) for name in cuts}
        facts = []
        for group in groups:
            changed, fact = self._update(model, group, kept[group.name], measured)
            tensors |= changed
            facts.append(fact)
        if states is not None and self.settings.sequential:
            self._put(block, tensors, cuts)
            model.run_block(block, states)
        told = {f"{name}{KEPT}": units for name, units in kept.items()}
        self.store.save(self.step_name(index), (tensors | told) or None, {"groups": facts})

    # -- one group
    # ---------------------------------------------------------------------------------------------

    def _choose(self, model: StreamedModel, group: Group, measured: _Measured | None) -> Tensor:
        """The units that stay: int64, ascending."""
        pieces = [self._piece(model, group, one, measured) for one in group.slices]
        statistics = None if measured is None else measured.units.statistics(group)
        hessian = None
        if measured is not None and "hessian" in structure_criteria[self.settings.criterion].needs:
            hessian = measured.outputs.statistics(group.output).need("hessian")
        masks = None
        if "mask.square" in self.settings.needs:
            masks = self._gradients.masks(self._sites[group.output])
        units = Units(group.name, group.count, pieces, statistics, hessian, masks)
        generator = site_generator(self.settings.seed, group.name)
        scores = check_unit_scores(self.settings.scorer().score(units, generator).cpu(), group.name)
        return best(scores, self.settings.widths[group.kind])

    def _piece(self, model: StreamedModel, group: Group, one: Slice, measured: _Measured | None) -> Piece:
        def by_unit(stored: Tensor) -> Tensor:
            owned = stored.movedim(one.axis, 0)[one.offset : one.offset + one.size * group.count]
            return owned.reshape(group.count, one.size, -1).to(model.device, torch.float32)

        weight = by_unit(model.reader.tensor(one.tensor))
        column = one.tensor == group.output
        if one.bias:
            return Piece(weight, bias=True)
        site = self._sites[one.site]
        found = self._gradients.of(site)
        gradient = by_unit(logical(found["mean"], site)) if "mean" in found else None
        norms = None
        if measured is not None and column:
            norms = measured.units.statistics(group).norms.reshape(group.count, one.size, 1)
        elif measured is not None and ROWS in self.settings.needs:
            norms = measured.rows.statistics(one.site).column_norms
        return Piece(weight, column, norms=norms, gradient=gradient)

    def _update(
        self, model: StreamedModel, group: Group, kept: Tensor, measured: _Measured | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of the weight that reads the units, as the updates leave them; the facts."""
        site = self._sites[group.output]
        stored = model.reader.tensor(site.name)
        dense = logical(stored.to(model.device, torch.float32), site)
        size = group.width
        inputs = (kept[:, None] * size + torch.arange(size)).flatten().to(model.device)
        bias = site.name.removesuffix("weight") + "bias"
        done = StructureCut(dense[:, inputs])
        chain = self.settings.chain()
        if chain:
            assert measured is not None
            means = measured.units.statistics(group).means
            task = StructureTask(dense, inputs, site.name, bias in model.reader, means)
            if "hessian" in self.settings.needs:
                task = StructureTask(
                    dense, inputs, site.name, task.has_bias, means,
                    measured.outputs.statistics(site.name).need("hessian"),
                )  # fmt: skip
            for update in chain:
                done = update.apply(task, done)
        changed = {}
        if chain:
            changed[site.name] = logical(done.weight.to(stored.dtype), site).cpu()
        if done.bias is not None:
            before = model.reader.tensor(bias)
            changed[bias] = (before.to(torch.float32) + done.bias.cpu()).to(before.dtype)
        return changed, self._fact(group, kept, dense, inputs, done, measured)

    def _fact(
        self,
        group: Group,
        kept: Tensor,
        dense: Tensor,
        inputs: Tensor,
        done: StructureCut,
        measured: _Measured | None,
    ) -> dict[str, Any]:
        whole = torch.zeros_like(dense).index_copy_(1, inputs, done.weight)
        lost = None
        if measured is not None:
            sample = measured.outputs.sample(group.output)
            lost = reconstruction_error(sample, dense, whole, done.bias)
        return {
            "name": group.output,
            "layer": group.layer,
            "kind": group.kind,
            "units": group.count,
            "kept": len(kept),
            "weight_error": weight_error(dense, whole),
            "reconstruction_error": lost,
        }
