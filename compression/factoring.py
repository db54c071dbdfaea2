"""Replacing weights by products of two thin ones, block by block: ranks, factors, one finished step a
block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compression import gradients
from compression.allocation.ranks import rank_allocations
from compression.anatomy.factors import bias_names, factor_names, packed_names
from compression.anatomy.inspection import Site
from compression.anatomy.ranks import RankBudget, Ranks, stored
from compression.checkpoint import Hook, Store
from compression.criteria.base import SiteStatistics
from compression.criteria.ranks import rank_criteria
from compression.dictionary import fitted
from compression.gradients import GradientFiles
from compression.loading.streamed import Block, States, StreamedModel
from compression.low_rank import Spectrum, factors, product
from compression.parameters import configured
from compression.pruning import Batch, Listener
from compression.seeds import site_generator
from compression.statistics import Collector, Positions, reconstruction_error, sample_positions, weight_error
from compression.updates.ranks import rank_updates


@dataclass(frozen=True)
class RankSettings:
    """How factors are made: the chosen entry of each axis. `parameters` are those of the entries."""

    criterion: str
    allocation: str = "uniform"
    update: tuple[str, ...] = ()
    atoms_per_entry: int = 1
    dictionary_rounds: int = 8
    coding_steps: int = 8
    sequential: bool = True
    gradient: str = "exact"
    gradient_sequences: int = 64
    gradient_directions: int = 32
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """What the criterion asks of the inputs that directions come of, and of gradients."""
        return rank_criteria[self.criterion].needs

    def spectrum(self, site: Site, weight: Tensor, statistics: SiteStatistics | None) -> Spectrum:
        """The directions of a weight by the criterion with the job's parameters."""
        criterion = configured(rank_criteria[self.criterion], self.parameters)
        return criterion.spectrum(weight, statistics, site.name, site_generator(self.seed, site.name))

    def factors(
        self, site: Site, weight: Tensor, statistics: SiteStatistics | None, rank: int
    ) -> tuple[Tensor, Tensor]:
        """(down float64 [rank, in], up float64 [out, rank]) of a weight, before updates."""
        found, atoms = self.spectrum(site, weight, statistics), self.atoms_per_entry
        if atoms == 1:
            return factors(weight, found, rank)
        return fitted(weight, found, rank, rank // atoms, self.dictionary_rounds, self.coding_steps)


@dataclass
class Streams:
    """Hidden states of the calibration data. `measured` are those that directions come of: the compressed
    model's if `sequential`, else the dense one's; `actual`, where an update needs them, are the compressed
    model's beside them."""

    measured: States
    actual: States | None
    positions: Positions


class RankPruner:
    """Replaces the sites of a budget by factors, in a model that is streamed from disk.

    `calibration` are token batches (None: no statistics, no reconstruction errors). Finished blocks are steps
    `block-0000`... of `store`: factors (and biases) by the names they will have, as stored.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        budget: RankBudget,
        settings: RankSettings,
        calibration: Sequence[Batch] | None,
        store: Store,
        listener: Listener,
        hook: Hook | None = None,
    ) -> None:
        self._open = open_model
        self.budget = budget
        self.settings = settings
        self.calibration = calibration
        self.store = store
        self._listener = listener
        self._hook = hook
        self.ranks: Ranks = {}
        self._gradients = GradientFiles(store, ())

    def step_name(self, index: int) -> str:
        """Name of the finished step of a block."""
        return f"block-{index:04d}"

    # -- how much of each weight
    # ---------------------------------------------------------------------------------------------

    def allocate(self) -> Ranks:
        """The rank of each weight that becomes a product; kept as step `allocation`. Gradients, where the
        criterion asks for any, are measured before, on the dense model."""
        if "gradient.square" in self.settings.needs:
            self._measure_gradients()
        if not self.store.has("allocation"):
            allocation = configured(rank_allocations[self.settings.allocation], self.settings.parameters)
            found = allocation.allocate(_Dense(self._values), self.budget)
            self.store.save("allocation", None, {"ranks": found})
        self.ranks = {str(name): int(rank) for name, rank in self.store.data("allocation")["ranks"].items()}
        return self.ranks

    def _measure_gradients(self) -> None:
        assert self.calibration is not None
        settings = self.settings
        batches = gradients.single_sequences(self.calibration, settings.gradient_sequences)
        chosen = (self._open, self.budget.sites, batches, self.store, ("square",))
        progress = self._listener.progress
        if settings.gradient == "exact":
            self._gradients = gradients.exact(*chosen, progress)
            return
        self._gradients = gradients.zeroth_order(
            *chosen, settings.gradient_directions, settings.seed, progress
        )

    def _statistics(self, collector: Collector | None, site: Site) -> SiteStatistics | None:
        """What is known of a site; None without calibration."""
        if collector is None:
            return None
        return collector.statistics(site.name).with_gradients(self._gradients.of(site))

    def _values(self) -> dict[str, list[float]]:
        """The values of every site's directions on the dense model."""
        model, found = self._open(), dict[str, list[float]]()
        states = model.start(self.calibration) if self.calibration is not None else None
        for index in range(model.layers):
            block, collector = model.load_block(index), None
            sites = [site for site in self.budget.sites if site.layer == index]
            if states is not None:
                collector = self._collect(model, block, states, Positions(), sites, self.settings.needs)
                model.run_block(block, states)
            for site in sites:
                weight = model.reader.tensor(site.name).to(model.device)
                known = self._statistics(collector, site)
                found[site.name] = self.settings.spectrum(site, weight, known).values.tolist()
            if self._hook is not None:
                self._hook("mid_block")
            self._listener.progress(index + 1, model.layers)
        return found

    def _collect(
        self,
        model: StreamedModel,
        block: Block,
        states: States,
        positions: Positions,
        sites: Sequence[Site],
        needs: frozenset[str],
    ) -> Collector:
        """Run every batch through a block under the collector's hooks; the states stay as they are."""
        where = positions or Positions(torch.zeros(0, dtype=torch.int64) for _ in range(len(states)))
        with Collector(block, [site.name for site in sites], states, where, needs) as collector:
            for number in range(len(states)):
                collector.batch(number)
                model.run_batch(block, states, number)
        return collector

    # -- the blocks
    # ---------------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Replace the weights of every block that is not finished; gives the facts of all sites, in the
        model's order."""
        self.allocate()
        model = self._open()
        todo = [index for index in range(model.layers) if not self.store.has(self.step_name(index))]
        streams = self._start(model) if todo and self.calibration is not None else None
        for index in range(model.layers):
            if not self.store.has(self.step_name(index)):
                self._replace_block(model, streams, index)
            elif streams is not None and index < todo[-1]:
                block = model.load_block(index)
                self._pass_dense(model, block, streams)
                self._lay_over(block, index)
                self._pass_replaced(model, block, streams)
            self._listener.progress(index + 1, model.layers)
        layers = range(model.layers)
        return [fact for index in layers for fact in self.store.data(self.step_name(index))["sites"]]

    def _start(self, model: StreamedModel) -> Streams:
        assert self.calibration is not None
        states = model.start(self.calibration)
        return Streams(states, states.copy() if self.settings.update else None, sample_positions(states))

    def _pass_dense(self, model: StreamedModel, block: Block, streams: Streams) -> None:
        if not self.settings.sequential:
            model.run_block(block, streams.measured)

    def _pass_replaced(self, model: StreamedModel, block: Block, streams: Streams) -> None:
        if self.settings.sequential:
            model.run_block(block, streams.measured)
        if streams.actual is not None:
            model.run_block(block, streams.actual)

    def _lay_over(self, block: Block, index: int) -> None:
        """Give a dense block the products of its finished factors."""
        tensors, _ = self.store.load(self.step_name(index))
        for name in self.ranks:
            down, up = factor_names(name)
            if down in tensors:
                parameter = block.parameter(name).data
                parameter.copy_(product(tensors[down], tensors[up]).to(parameter.dtype))

    def _replace_block(self, model: StreamedModel, streams: Streams | None, index: int) -> None:
        block = model.load_block(index)
        sites = [site for site in self.budget.sites if site.layer == index]
        measured = actual = None
        if streams is not None:
            needs, where = self.settings.needs, streams.positions
            measured = self._collect(model, block, streams.measured, where, sites, needs)
            if streams.actual is not None:
                actual = self._collect(model, block, streams.actual, where, sites, self._update_needs())
            self._pass_dense(model, block, streams)
        if self._hook is not None:
            self._hook("mid_block")
        tensors: dict[str, Tensor] = {}
        facts = []
        for site in sites:
            changed, fact = self._replace_site(model, site, measured, actual)
            tensors |= changed
            facts.append(fact)
        self.store.save(self.step_name(index), tensors or None, {"sites": facts})
        if streams is not None:
            self._lay_over(block, index)
            self._pass_replaced(model, block, streams)

    def _update_needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(rank_updates[name].needs for name in self.settings.update))

    @torch.no_grad()
    def _replace_site(
        self, model: StreamedModel, site: Site, measured: Collector | None, actual: Collector | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that stand for a weight and its bias, as stored (none: it stays dense); the facts."""
        kept = model.reader.tensor(site.name)
        weight = kept.to(model.device)
        sample = measured if actual is None else actual
        rank = self.ranks.get(site.name)
        if rank is None:
            return {}, _fact(site, None, weight, weight.to(torch.float32), sample)
        statistics = self._statistics(measured, site)
        down, up = self.settings.factors(site, weight, statistics, rank)
        for name in self.settings.update:
            assert actual is not None
            moment = actual.statistics(site.name).need("hessian").to(weight.device)
            update = configured(rank_updates[name], self.settings.parameters)
            down, up = update.apply(weight, down, up, moment)
        first, second = down.to(kept.dtype).cpu(), up.to(kept.dtype).cpu()
        tensors = dict(zip(factor_names(site.name), (first, second), strict=True))
        old, new = bias_names(site.name)
        if old in model.reader:
            tensors[new] = model.reader.tensor(old)
        replaced = product(first, second).to(weight.device)
        return tensors, _fact(site, rank, weight, replaced, sample, self.settings.atoms_per_entry)


class _Dense:
    """The dense model's values, measured when they are first asked for (a `RankEvidence`)."""

    def __init__(self, measure: Callable[[], Mapping[str, Sequence[float]]]) -> None:
        self._measure = measure
        self._known: Mapping[str, Sequence[float]] | None = None

    def values(self, site: str) -> Sequence[float]:
        """See `RankEvidence`."""
        if self._known is None:
            self._known = self._measure()
        return self._known[site]


def _written(weight: str, atoms: int) -> tuple[str, str]:
    """The names of the factors' elements in the result."""
    down, up = factor_names(weight)
    return down, up if atoms == 1 else packed_names(weight)[0]


def _fact(
    site: Site,
    rank: int | None,
    dense: Tensor,
    replaced: Tensor,
    sample: Collector | None,
    atoms: int = 1,
) -> dict[str, Any]:
    """What the report says of a site; `replaced` float32 [out, in] is the product of its factors."""
    size = stored(site.shape, rank, atoms)
    lost = None
    if sample is not None:
        lost = reconstruction_error(sample.sample(site.name), dense, replaced)
    return {
        "name": site.name,
        "layer": site.layer,
        "kind": site.kind,
        "shape": list(site.shape),
        "rank": rank,
        "factors": [] if rank is None else list(_written(site.name, atoms)),
        "kept": size,
        "removed": site.size - size,
        "weight_error": weight_error(dense, replaced),
        "reconstruction_error": lost,
    }
