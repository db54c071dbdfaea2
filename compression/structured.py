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
from compression.anatomy.structures import Group, Slice
from compression.block_pruning import BlockPruner, StructureSettings
from compression.checkpoint import Hook, Store
from compression.criteria.units import Piece, Units
from compression.gradients import GradientFiles, logical
from compression.loading.streamed import Block, States, StreamedModel
from compression.pruning import Batch, Listener
from compression.statistics import Collector, Positions, reconstruction_error, weight_error
from compression.surgery import cuts_of, expanded
from compression.unit_statistics import UnitCollector
from compression.updates.units import StructureCut, StructureTask, StructureUpdate

ROWS = "activations"


@dataclass
class Measured:
    """What one block's calibration knows."""

    units: UnitCollector
    rows: Collector
    outputs: Collector


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
        """Measure the gradients, if the criterion asks for any."""
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
