"""Removing neurons and heads: what calibration knows of them, their pieces of weights, and what happens to
the weights that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compression import gradients
from compression.anatomy.inspection import Site
from compression.anatomy.slices import stored_tensor
from compression.anatomy.structures import Group, Slice
from compression.block_pruning import BlockPruner, StructureSettings
from compression.checkpoint import Hook, Store
from compression.criteria.structures import structure_criteria
from compression.criteria.units import Piece, Units, best
from compression.gradients import GradientFiles, logical
from compression.joined import part_of
from compression.loading.streamed import Block, States, StreamedModel
from compression.pruning import Batch, Listener
from compression.seeds import site_generator
from compression.statistics import Collector, Positions, reconstruction_error, weight_error
from compression.surgery import cuts_of, expanded
from compression.unit_statistics import UnitCollector
from compression.updates.units import StructureCut, StructureTask, StructureUpdate

ROWS = "activations"
BOUND = "bound-units"
FALLBACK = "magnitude"
# An expert that saw fewer tokens is judged by its weights alone: variances of fewer say little.
FEW_TOKENS = 16


@dataclass
class Measured:
    """What one block's calibration knows."""

    units: UnitCollector
    rows: Collector
    outputs: Collector

    def few(self, group: Group) -> bool:
        """Whether the units are an expert's that saw too few tokens to be judged by them."""
        return group.expert is not None and self.units.tokens(group) < FEW_TOKENS


class StructurePruner(BlockPruner[Measured]):
    """Cuts neurons and heads; `sites` are all weight sites by name."""

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
        super().__init__(open_model, groups, settings, calibration, store, listener, hook)
        self._sites = sites
        self._gradients = GradientFiles(store, ())

    def prepare(self) -> None:
        """Measure the gradients, if the criterion asks for any, and choose the units that several layers
        share."""
        self._measure_gradients()
        if any(group.bound for group in self.groups) and not self.chosen:
            self.chosen = self._bind()

    def _bind(self) -> dict[str, Tensor]:
        """The units that stay of bound groups: those with the highest sum over the groups of their scores on
        the dense model, each group's divided by their mean."""
        if not self.store.has(BOUND):
            sums: dict[str, Tensor] = {}

            def seen(model: StreamedModel, group: Group, scores: Tensor, measured: Measured | None) -> None:
                if group.bound:
                    mean = float(scores.mean())
                    known = sums.get(group.bound, torch.zeros_like(scores))
                    sums[group.bound] = known + (scores / mean if mean > 0 else scores)

            self.look(seen)
            keep = {group.bound: self.keep[group.name] for group in self.groups}
            self.store.save(BOUND, {name: best(found, keep[name]) for name, found in sums.items()}, {})
        units, _ = self.store.load(BOUND)
        return {group.name: units[group.bound] for group in self.groups if group.bound}

    def _scores(self, model: StreamedModel, group: Group, measured: Measured | None) -> Tensor:
        if not self.settings.scorer().needs or measured is None or not measured.few(group):
            return super()._scores(model, group, measured)
        units = Units(group.name, group.count, [self._piece(model, group, one, None) for one in group.slices])
        generator = site_generator(self.settings.seed, group.name)
        return structure_criteria[FALLBACK].score(units, generator).cpu()

    def _measure_gradients(self) -> None:
        settings = self.settings
        output, masks = "gradient.output" in settings.needs, "mask.square" in settings.needs
        mean = output or "gradient.mean" in settings.needs
        if not (mean or masks):
            return
        assert self.calibration is not None
        names = dict.fromkeys(
            one.site for group in self.all_groups for one in group.slices if mean or one.site == group.output
        )
        sites = [self._sites[name] for name in names]
        batches = gradients.single_sequences(self.calibration, settings.gradient_sequences)
        kinds = ("mean",) if mean else ()
        units = {group.output: group.count for group in self.all_groups} if masks else {}
        chosen = (self._open, sites, batches, self.store, kinds)
        progress = self._listener.progress
        of = gradients.sequence_height if output else gradients.sequence_loss
        if settings.gradient == "exact":
            self._gradients = gradients.exact(*chosen, progress, units=units, objective=of)
            return
        self._gradients = gradients.zeroth_order(
            *chosen, settings.gradient_directions, settings.seed, progress, units=units, objective=of
        )

    def _shrink(
        self,
        block: Block,
        groups: Sequence[Group],
        kept: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Zeros in the place of what went give what the smaller block gives."""
        cuts = cuts_of(groups, kept)
        inside = {stored_tensor(name) for name in cuts}
        for name in dict.fromkeys([*cuts, *(name for name in tensors if name not in inside)]):
            tensor, data = part_of(tensors, name), block.parameter(name).data
            assert tensor is not None, "a finished block has all that it lost something of"
            data.copy_(expanded(tensor, data.shape, cuts[name]) if name in cuts else tensor)

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        groups: Sequence[Group],
        states: States,
        positions: Positions,
    ) -> Measured:
        needs = self.settings.needs
        rows = {one.site for group in groups for one in group.slices if one.site != group.output}
        units = UnitCollector(block, groups, states)
        inputs = Collector(block, sorted(rows) if ROWS in needs else [], states, positions)
        outputs = [group.output for group in groups]
        found = Measured(units, inputs, Collector(block, outputs, states, positions, needs & {"hessian"}))
        with units, inputs, found.outputs:
            for number in range(len(states)):
                for collector in (units, inputs, found.outputs):
                    collector.batch(number)
                hidden = model.run_batch(block, states, number)
                if not self.settings.sequential:
                    states.hidden[number] = hidden
        return found

    # -- one group
    # ---------------------------------------------------------------------------------------------

    def _units(self, model: StreamedModel, group: Group, measured: Measured | None) -> Units:
        pieces = [self._piece(model, group, one, measured) for one in group.slices]
        statistics = None if measured is None else measured.units.statistics(group)
        hessian = masks = None
        needs = self.settings.scorer().needs
        if measured is not None and "hessian" in needs:
            hessian = measured.outputs.statistics(group.output).need("hessian")
        if "mask.square" in needs:
            masks = self._gradients.masks(self._sites[group.output])
        return Units(group.name, group.count, pieces, statistics, hessian=hessian, masks=masks)

    def _piece(self, model: StreamedModel, group: Group, one: Slice, measured: Measured | None) -> Piece:
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

    def update_group(
        self, model: StreamedModel, group: Group, kept: Tensor, measured: Measured | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of the weight that reads the units, as the updates leave them; the facts."""
        site = self._sites[group.output]
        stored = model.reader.tensor(site.name)
        dense = logical(stored.to(model.device, torch.float32), site)
        size = group.width
        inputs = (kept[:, None] * size + torch.arange(size)).flatten().to(model.device)
        bias = site.name.removesuffix("weight") + "bias"
        done = StructureCut(dense[:, inputs])
        chain = [] if measured is not None and measured.few(group) else self.settings.chain()
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
                assert isinstance(update, StructureUpdate)
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
        measured: Measured | None,
    ) -> dict[str, Any]:
        whole = torch.zeros_like(dense).index_copy_(1, inputs, done.weight)
        lost = None
        routed = None
        if measured is not None and group.expert is not None:
            routed = measured.units.tokens(group)
        if measured is not None and routed != 0:
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
            # Of an expert: below FEW_TOKENS its weights alone chose.
            "routed_tokens": routed,
        }

    def tell(self, index: int, facts: Sequence[Mapping[str, Any]]) -> None:
        few = sum(fact["routed_tokens"] is not None and fact["routed_tokens"] < FEW_TOKENS for fact in facts)
        if few and self.settings.needs:
            self._listener.log(
                f"block {index}: {few} experts got fewer than {FEW_TOKENS} calibration tokens; their neurons "
                f"are chosen by {FALLBACK}, and not updated"
            )
