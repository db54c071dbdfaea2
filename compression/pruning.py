"""Removing single weights, block by block: statistics, scores, masks, new weights, one finished step a
block.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from compression import gradients
from compression.allocation import allocations
from compression.anatomy.inspection import Site
from compression.checkpoint import Hook, Store
from compression.cutting import PruneSettings, cut_site
from compression.device import give_memory_back
from compression.evidence import Curves, ModelEvidence
from compression.export.masks import pack, unpack
from compression.gradients import GradientFiles, Measured, logical
from compression.loading.streamed import Block, States, StreamedModel
from compression.parameters import configured
from compression.statistics import (
    Collector,
    Positions,
    nonzeros,
    reconstruction_error,
    sample_positions,
    weight_error,
)
from compression.token_weights import all_token_weights
from compression.updates.base import Cut

Batch = dict[str, Tensor]
MASK_SUFFIX = ".mask"

__all__ = ["Batch", "Listener", "MaskFiles", "PruneSettings", "WeightPruner", "finished_files"]


class Listener(Protocol):
    """Who hears how far the work is."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...


class WeightPruner:
    """Prunes the given sites of a model that is streamed from disk.

    `calibration` are token batches (None: no statistics, no reconstruction errors). Finished blocks are steps
    `block-0000`... of `store`: the new weights (and biases) as stored, and their packed masks [out, in] under
    NAME.mask. `curves` keeps what an allocation measures; it may outlive the job. `domain` are token batches
    of a domain, for criteria that weigh it against the calibration data.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        sites: Sequence[Site],
        settings: PruneSettings,
        calibration: Sequence[Batch] | None,
        store: Store,
        listener: Listener,
        hook: Hook | None = None,
        curves: Curves | None = None,
        domain: Sequence[Batch] | None = None,
    ) -> None:
        self._open = open_model
        self.sites = list(sites)
        self.settings = settings
        self.calibration = calibration
        self.domain = domain
        self.store = store
        self._listener = listener
        self._hook = hook
        self._curves = curves or Curves(None, "")
        self._gradients = Measured(GradientFiles(store, ()), GradientFiles(store, ()))
        self.counts: dict[str, int] = {}

    def step_name(self, index: int) -> str:
        """Name of the finished step of a block."""
        return f"block-{index:04d}"

    def of_layer(self, layer: int) -> list[Site]:
        """The sites of one layer."""
        return [site for site in self.sites if site.layer == layer]

    # -- how much from where
    # ------------------------------------------------------------------------------------

    def allocate(self) -> dict[str, int]:
        """Number of weights each site loses; kept as step `allocation`."""
        settings = self.settings
        self._gradients = Measured(
            self._measure_gradients(self.calibration, settings.gradients, ""),
            self._measure_gradients(self.domain, settings.domain_gradients, "domain-"),
        )
        if not self.store.has("allocation"):
            self.store.save("allocation", None, {"counts": self._counts()})
        self.counts = {
            str(name): int(count) for name, count in self.store.data("allocation")["counts"].items()
        }
        return self.counts

    def _measure_gradients(
        self, data: Sequence[Batch] | None, kinds: tuple[str, ...], use: str
    ) -> GradientFiles:
        settings = self.settings
        if not kinds:
            return GradientFiles(self.store, ())
        assert data is not None
        batches = gradients.single_sequences(data, settings.gradient_sequences)
        progress = self._listener.progress
        if settings.gradient == "exact":
            return gradients.exact(self._open, self.sites, batches, self.store, kinds, progress, use)
        return gradients.zeroth_order(
            self._open,
            self.sites,
            batches,
            self.store,
            kinds,
            settings.gradient_directions,
            settings.seed,
            progress,
            use,
        )

    def _counts(self) -> dict[str, int]:
        settings = self.settings
        pattern = settings.pattern
        if pattern.kind == "n:m":
            share = pattern.group - pattern.keep
            return {site.name: site.size // pattern.group * share for site in self.sites}
        scratch = self.store.root / "allocation"
        evidence = ModelEvidence(
            self._open,
            self.sites,
            settings,
            self.calibration,
            self._gradients,
            scratch,
            self._curves,
            self._listener.progress,
        )
        allocation = configured(allocations[settings.allocation], settings.parameters)
        counts = allocation.allocate(evidence, settings.remove_total // settings.unit)
        shutil.rmtree(scratch, ignore_errors=True)
        return {name: count * settings.unit for name, count in counts.items()}

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        states: States,
        sites: Sequence[Site],
        positions: Positions,
    ) -> Collector:
        """Run every batch through a block under the collector's hooks; without `sequential`, keep the
        outputs."""
        settings = self.settings
        names = [site.name for site in sites]
        with Collector(block, names, states, positions, settings.needs) as collector:
            for number in range(len(states)):
                weights = all_token_weights(settings.token_weight, model, block, states, number)
                collector.batch(number, *weights)
                hidden = model.run_batch(block, states, number)
                if not settings.sequential:
                    states.hidden[number] = hidden
        return collector

    # -- the blocks
    # ---------------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Prune every block that is not finished; gives the facts of all sites, in the model's order."""
        self.allocate()
        model = self._open()
        todo = [index for index in range(model.layers) if not self.store.has(self.step_name(index))]
        states = model.start(self.calibration) if todo and self.calibration is not None else None
        positions = sample_positions(states) if states is not None else None
        for index in range(model.layers):
            if states is not None and index <= todo[-1] and model.advance(states, index):
                positions = sample_positions(states)
            if self.store.has(self.step_name(index)):
                if states is not None and index < todo[-1]:
                    self._pass_finished(model, states, index)
            else:
                self._prune_block(model, states, positions, index, last=index == todo[-1])
            self._listener.progress(index + 1, model.layers)
        return self.facts(model.layers)

    def facts(self, layers: int) -> list[dict[str, Any]]:
        """What the finished steps say of every site."""
        return [fact for index in range(layers) for fact in self.store.data(self.step_name(index))["sites"]]

    def _pass_finished(self, model: StreamedModel, states: States, index: int) -> None:
        path = self.store.path(self.step_name(index))
        if self.settings.sequential and path.exists():
            model.reader.lay_over(path)
        model.run_block(model.load_block(index), states)

    def _prune_block(
        self,
        model: StreamedModel,
        states: States | None,
        positions: Positions | None,
        index: int,
        *,
        last: bool,
    ) -> None:
        give_memory_back()  # of the block before, so that the two are never there together
        block = model.load_block(index)
        give_memory_back()
        sites = self.of_layer(index)
        collector = None
        if states is not None and positions is not None:
            collector = self._collect(model, block, states, sites, positions)
            give_memory_back()
        if self._hook is not None:
            self._hook("mid_block")
        tensors: dict[str, Tensor] = {}
        facts = []
        for site in sites:
            changed, mask, fact = self._prune_site(model, site, collector)
            if collector is not None:
                collector.forget(site.name)
            tensors |= {**changed, site.name + MASK_SUFFIX: pack(mask)}
            facts.append(fact)
            for name, value in changed.items():
                block.adopt(name, value)
        del collector
        self._tell_of_unused(index, facts)
        # A block whose weights are all ignored changes nothing, and a file without tensors is none.
        self.store.save(self.step_name(index), tensors or None, {"sites": facts})
        del tensors
        if states is not None and self.settings.sequential and not last:
            give_memory_back()
            model.run_block(block, states)

    def _tell_of_unused(self, index: int, facts: Sequence[Mapping[str, Any]]) -> None:
        """Say how many weights belong to experts to which no calibration token was routed."""
        unused = sum(fact["routed_tokens"] == 0 for fact in facts)
        if unused:
            self._listener.log(
                f"block {index}: {unused} weights belong to experts that no calibration token was routed to; "
                "the inputs that all tokens of the layer would have given them stand in"
            )

    def _prune_site(
        self, model: StreamedModel, site: Site, collector: Collector | None
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        """The changed tensors by stored name, as stored; the mask [out, in]; the facts."""
        stored = model.reader.tensor(site.name)
        dense = logical(stored.to(model.device), site)
        statistics = None
        if collector is not None:
            statistics = self._gradients.added(collector.statistics(site.name), site)
        bias = site.name.removesuffix("weight") + "bias"
        has_bias = bias in model.reader
        cut = cut_site(self.settings, site, dense, statistics, self.counts[site.name], has_bias=has_bias)
        pruned = cut.weight.to(stored.dtype)
        changed = {site.name: logical(pruned, site).cpu()}
        if cut.bias is not None:
            before = model.reader.tensor(bias)
            changed[bias] = (before.to(torch.float32) + cut.bias.cpu()).to(before.dtype)
        return changed, cut.mask, self._fact(site, dense, pruned, cut, collector)

    def _fact(
        self, site: Site, dense: Tensor, pruned: Tensor, cut: Cut, collector: Collector | None
    ) -> dict[str, Any]:
        removed, zeros = site.size - nonzeros(cut.mask), site.size - nonzeros(pruned)
        lost = routed = None
        if collector is not None:
            routed = collector.routed(site.name)
            lost = reconstruction_error(collector.sample(site.name), dense, pruned, cut.bias)
        return {
            "name": site.name,
            "layer": site.layer,
            "kind": site.kind,
            "shape": list(site.shape),
            "removed": removed,
            "kept": site.size - removed,
            "zeros": zeros,
            "sparsity": zeros / site.size,
            "weight_error": weight_error(dense, pruned),
            "reconstruction_error": lost,
            # Of an expert: 0 means that statistics of all tokens of the layer stood in.
            "routed_tokens": routed,
        }


def finished_files(store: Store, layers: int) -> list[Path]:
    """The files of finished blocks that have pruned weights, in the model's order."""
    paths = [store.path(f"block-{index:04d}") for index in range(layers)]
    return [path for path in paths if path.exists()]


class MaskFiles(Mapping[str, Tensor]):
    """Keep-masks bool of the shape of the stored weight by site, read from the finished blocks when asked
    for."""

    def __init__(self, store: Store, sites: Sequence[Site]) -> None:
        self._places = {site.name: (store.path(f"block-{site.layer:04d}"), site) for site in sites}

    def __getitem__(self, site: str) -> Tensor:
        path, place = self._places[site]
        with safe_open(path, framework="pt", device="cpu") as stream:
            return logical(unpack(stream.get_tensor(site + MASK_SUFFIX), place.shape[1]), place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
