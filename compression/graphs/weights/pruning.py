"""Pruning the single weights of a graph: one pass over its nodes with all calibration batches beside each
other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compression.allocation import allocations
from compression.anatomy.graph_sites import GraphSite, Weights
from compression.cutting import PruneSettings
from compression.graphs.batches import Batches
from compression.graphs.executor import to_numpy, to_torch
from compression.graphs.graph import Array, Graph, Node
from compression.graphs.lockstep import Lockstep
from compression.graphs.weights.cutting import cut
from compression.graphs.weights.evidence import GraphEvidence, dense_inputs, entering
from compression.graphs.weights.inputs import InputSums, block_diagonal, summed
from compression.graphs.weights.matrices import matrix, stored_form
from compression.parameters import configured
from compression.statistics import reconstruction_error, weight_error
from compression.updates.base import Cut

Progress = Callable[[int, int], None]
Fact = dict[str, Any]


@dataclass(frozen=True)
class Pruned:
    """A graph with zeros. `masks` are keep-masks bool [out, in] by site; `facts` say what went from each."""

    graph: Graph
    masks: Mapping[str, Tensor]
    facts: Sequence[Fact]


def allocate(
    graph: Graph, weights: Weights, settings: PruneSettings, batches: Batches | None, progress: Progress
) -> dict[str, int]:
    """How many weights each site loses; the sum is exactly `settings.remove_total`. Raises
    TargetUnreachable."""
    pattern = settings.pattern
    if pattern.kind == "n:m":
        share = pattern.group - pattern.keep
        return {site.name: site.size // pattern.group * share for site in weights.sites}
    evidence = GraphEvidence(graph, weights, settings, batches, progress)
    allocation = configured(allocations[settings.allocation], settings.parameters)
    counts = allocation.allocate(evidence, settings.remove_total // settings.unit)
    return {name: count * settings.unit for name, count in counts.items()}


def prune(
    graph: Graph,
    weights: Weights,
    settings: PruneSettings,
    counts: Mapping[str, int],
    batches: Batches | None,
    progress: Progress = lambda done, total: None,
) -> Pruned:
    """Remove so many weights of each site. With batches, every site is judged by what enters it when
    everything before it is pruned (`settings.sequential`), or in the dense graph; a tensor that several nodes
    multiply by always by what enters them in the dense graph.

    Memory holds what is live of all batches at once."""
    work = _Pass(graph, weights, settings, counts, batches)
    for done, site in enumerate(weights.sites, start=1):
        work.visit(site)
        progress(done, len(weights.sites))
    return Pruned(replace(graph, initializers=work.arrays), work.masks, work.facts)


class _Pass:
    """The pass of `prune`, site by site in the order in which they are first multiplied by."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        settings: PruneSettings,
        counts: Mapping[str, int],
        batches: Batches | None,
    ) -> None:
        self._graph, self._weights, self._settings, self._counts = graph, weights, settings, counts
        self._nodes = {name: node for node in graph.nodes for name in node.outputs if name}
        self._consumers = graph.consumers()
        self._lockstep = None if batches is None else Lockstep(graph, batches)
        shared = [site for site in weights.sites if len(weights.readers[site.name]) > 1]
        self._shared: Mapping[str, InputSums] = {}
        if batches is not None and shared:
            self._shared = dense_inputs(graph, weights, shared, batches, settings.needs)
        self.arrays: dict[str, Array] = dict(graph.initializers)
        self.masks: dict[str, Tensor] = {}
        self.facts: list[Fact] = []

    def visit(self, site: GraphSite) -> None:
        """Prune one site."""
        array = self._graph.initializers[site.name]
        dense = matrix(site, to_torch(array, site.name))
        sums = self._inputs(site)
        known = None if sums is None else sums.statistics()
        bias = self._bias(site)
        made = cut(self._settings, site, dense, known, self._counts[site.name], has_bias=bias is not None)
        pruned = made.weight.to(dense.dtype)
        self._replace(site.name, to_numpy(stored_form(site, pruned, array.shape), array))
        if bias is not None and made.bias is not None:
            before = self.arrays[bias]
            values = to_torch(before, bias)
            self._replace(bias, to_numpy((values.float() + made.bias).to(values.dtype), before))
        self.masks[site.name] = made.mask
        self.facts.append(_fact(site, dense, pruned, made, sums))

    def _inputs(self, site: GraphSite) -> InputSums | None:
        if self._lockstep is None:
            return None
        readers = self._weights.readers[site.name]
        node = self._nodes[readers[0]]
        self._lockstep.before(readers[0])
        if site.name in self._shared:
            return self._shared[site.name]
        return summed(site, [(node, entering(self._lockstep, site, node))], self._settings.needs)

    def _bias(self, site: GraphSite) -> str | None:
        """The stored bias [out] of the one node that reads a site, if no other node reads it."""
        readers = self._weights.readers[site.name]
        node: Node = self._nodes[readers[0]]
        name = node.input(2)
        if len(readers) > 1 or node.operator == "MatMul" or len(self._consumers.get(name, ())) != 1:
            return None
        found = self._graph.initializers.get(name)
        plain = node.number("alpha", 1.0) == 1 and node.number("beta", 1.0) == 1
        return name if plain and found is not None and found.shape == (site.shape[0],) else None

    def _replace(self, name: str, array: Array) -> None:
        """A stored tensor has other values from here on."""
        self.arrays[name] = array
        lockstep = self._lockstep
        if lockstep is None or not self._settings.sequential:
            return
        lockstep.initializers[name] = to_torch(array, name)
        for value in self._weights.paths.get(name, ()):
            for place, values in enumerate(lockstep.values):
                values[value] = lockstep.outputs(self._nodes[value], place)[0]


def _fact(site: GraphSite, dense: Tensor, pruned: Tensor, made: Cut, sums: InputSums | None) -> Fact:
    removed = site.size - int(torch.count_nonzero(made.mask))
    zeros = site.size - int(torch.count_nonzero(pruned))
    lost = None
    if sums is not None:
        before, after = (block_diagonal(site, values.float()) for values in (dense, pruned))
        lost = reconstruction_error(sums.sample(), before, after, made.bias)
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
    }


def disobeyed(graph: Graph, masks: Mapping[str, Tensor], weights: Weights) -> list[str]:
    """The sites whose stored values are not zero somewhere where their mask says so."""
    found = []
    for site in weights.sites:
        array = graph.initializers.get(site.name)
        if array is None or np.any(matrix(site, to_torch(array, site.name))[~masks[site.name]].numpy()):
            found.append(site.name)
    return found
