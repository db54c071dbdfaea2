"""Removing single weights, block by block: statistics, scores, masks, new weights, one finished step a
block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from compression.allocation import allocations
from compression.anatomy.inspection import Site
from compression.checkpoint import Hook, Store
from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, check_scores
from compression.export.masks import pack, unpack
from compression.granularity.base import Pattern, zeros_first
from compression.granularity.n_m import n_m_mask
from compression.granularity.unstructured import unstructured_mask
from compression.loading.streamed import Block, States, StreamedModel
from compression.statistics import Collector, reconstruction_error, sample_positions, weight_error
from compression.updates import updates

Batch = dict[str, Tensor]
MASK_SUFFIX = ".mask"


class Listener(Protocol):
    """Who hears how far the work is."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...


@dataclass(frozen=True)
class PruneSettings:
    """What is removed: the chosen entry of each axis and how much."""

    criterion: str
    pattern: Pattern
    remove_total: int
    allocation: str = "uniform"
    comparison: str = "row"
    minimum_density: float = 0.05
    sequential: bool = True
    update: str = "none"
    seed: int = 0

    @property
    def needs_activations(self) -> bool:
        """Whether the criterion or the update asks for calibration data."""
        return "activations" in criteria[self.criterion].needs | updates[self.update].needs


def site_generator(seed: int, site: str) -> torch.Generator:
    """A CPU generator whose numbers depend on the job's seed and the site alone, not on what ran before."""
    digest = hashlib.sha256(f"{seed}:{site}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def make_mask(scores: Tensor, weight: Tensor, settings: PruneSettings, remove: int) -> Tensor:
    """Keep-mask bool [out, in] of one weight; zeros go first, counts are exact."""
    ordered = zeros_first(scores, weight)
    if settings.pattern.kind == "n:m":
        return n_m_mask(ordered, settings.pattern.keep, settings.pattern.group)
    return unstructured_mask(ordered, remove, settings.comparison)


class WeightPruner:
    """Prunes the given sites of a model that is streamed from disk.

    `calibration` are token batches (None: no statistics, no reconstruction errors). Finished blocks are steps
    `block-0000`... of `store`: the new weights as stored, and their packed masks under NAME.mask.
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
    ) -> None:
        self._open = open_model
        self.sites = list(sites)
        self.settings = settings
        self.calibration = calibration
        self.store = store
        self._listener = listener
        self._hook = hook
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
        if not self.store.has("allocation"):
            self.store.save("allocation", None, {"counts": self._counts()})
        self.counts = {
            str(name): int(count) for name, count in self.store.data("allocation")["counts"].items()
        }
        return self.counts

    def _counts(self) -> dict[str, int]:
        sizes = {site.name: site.size for site in self.sites}
        pattern = self.settings.pattern
        if pattern.kind == "n:m":
            return {
                name: size // pattern.group * (pattern.group - pattern.keep) for name, size in sizes.items()
            }
        allocation = allocations[self.settings.allocation]
        stream: Callable[[], Iterator[tuple[str, Tensor]]] | None = None
        if allocation.needs_scores:
            model = self._open()
            statistics = self._dense_statistics(model) if self.settings.needs_activations else {}

            def scores() -> Iterator[tuple[str, Tensor]]:
                for site in self.sites:
                    weight = model.reader.tensor(site.name).to(model.device)
                    yield site.name, zeros_first(self._score(site, weight, statistics.get(site.name)), weight)

            stream = scores
        return allocation.allocate(sizes, stream, self.settings.remove_total, self.settings.minimum_density)

    def _dense_statistics(self, model: StreamedModel) -> dict[str, SiteStatistics]:
        """Norms of the inputs of every site on the dense model: one pass over the calibration data."""
        assert self.calibration is not None
        states = model.start(self.calibration)
        positions = sample_positions(states, 0)
        result: dict[str, SiteStatistics] = {}
        for index in range(model.layers):
            block = model.load_block(index)
            names = [site.name for site in self.of_layer(index)]
            collector = self._collect(model, block, states, names, positions, carry=True)
            result |= {name: collector.statistics(name) for name in names}
            self._listener.progress(index + 1, model.layers)
        return result

    def _score(self, site: Site, weight: Tensor, statistics: SiteStatistics | None) -> Tensor:
        generator = site_generator(self.settings.seed, site.name)
        return check_scores(criteria[self.settings.criterion].score(weight, statistics, generator), site.name)

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        states: States,
        names: Sequence[str],
        positions: Sequence[Tensor],
        *,
        carry: bool,
    ) -> Collector:
        """Run every batch through a block under the collector's hooks; `carry` keeps the outputs."""
        with Collector(block, names, states, positions) as collector:
            for number in range(len(states)):
                collector.batch(number)
                hidden = model.run_batch(block, states, number)
                if carry:
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
        positions = sample_positions(states) if states is not None else []
        for index in range(model.layers):
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
        if self.settings.sequential:
            model.reader.lay_over(self.store.path(self.step_name(index)))
        model.run_block(model.load_block(index), states)

    def _prune_block(
        self,
        model: StreamedModel,
        states: States | None,
        positions: Sequence[Tensor],
        index: int,
        *,
        last: bool,
    ) -> None:
        block = model.load_block(index)
        sites = self.of_layer(index)
        collector = None
        if states is not None:
            names = [site.name for site in sites]
            carry = not self.settings.sequential
            collector = self._collect(model, block, states, names, positions, carry=carry)
        if self._hook is not None:
            self._hook("mid_block")
        tensors: dict[str, Tensor] = {}
        facts = []
        for site in sites:
            dense = model.reader.tensor(site.name)
            mask, pruned, fact = self._prune_site(site, dense.to(model.device), collector)
            tensors[site.name] = pruned.cpu()
            tensors[site.name + MASK_SUFFIX] = pack(mask)
            facts.append(fact)
            block.parameter(site.name).data.copy_(pruned)
        self.store.save(self.step_name(index), tensors, {"sites": facts})
        if states is not None and self.settings.sequential and not last:
            model.run_block(block, states)

    def _prune_site(
        self, site: Site, dense: Tensor, collector: Collector | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        statistics = collector.statistics(site.name) if collector is not None else None
        mask = make_mask(self._score(site, dense, statistics), dense, self.settings, self.counts[site.name])
        pruned = updates[self.settings.update].apply(dense, mask, statistics)
        removed = int((~mask).sum())
        zeros = int((pruned == 0).sum())
        fact = {
            "name": site.name,
            "layer": site.layer,
            "kind": site.kind,
            "shape": list(site.shape),
            "removed": removed,
            "kept": site.size - removed,
            "zeros": zeros,
            "sparsity": zeros / site.size,
            "weight_error": weight_error(dense, pruned),
            "reconstruction_error": (
                reconstruction_error(collector.sample(site.name), dense, pruned)
                if collector is not None
                else None
            ),
        }
        return mask, pruned, fact


def finished_files(store: Store, layers: int) -> list[Path]:
    """The files of finished blocks that have pruned weights, in the model's order."""
    paths = [store.path(f"block-{index:04d}") for index in range(layers)]
    return [path for path in paths if path.exists()]


class MaskFiles(Mapping[str, Tensor]):
    """Keep-masks bool [out, in] by site, read from the finished blocks when they are asked for."""

    def __init__(self, store: Store, sites: Sequence[Site]) -> None:
        self._places = {site.name: (store.path(f"block-{site.layer:04d}"), site.shape[1]) for site in sites}

    def __getitem__(self, site: str) -> Tensor:
        path, columns = self._places[site]
        with safe_open(path, framework="pt", device="cpu") as stream:
            return unpack(stream.get_tensor(site + MASK_SUFFIX), columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
