"""What allocations may know of the single weights of a graph (see `allocation.base.Evidence`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compression.anatomy.graph_sites import GraphSite, Weights
from compression.criteria import criteria
from compression.criteria.base import SiteStatistics
from compression.cutting import PruneSettings
from compression.densities import Bounds, site_bounds
from compression.errors import CompressionError
from compression.granularity.base import zeros_first
from compression.granularity.blocks import block_scores
from compression.graphs.batches import Batches
from compression.graphs.executor import to_torch
from compression.graphs.graph import Graph, Node
from compression.graphs.lockstep import Lockstep
from compression.graphs.weights.cutting import scores
from compression.graphs.weights.inputs import InputSums, summed
from compression.graphs.weights.matrices import matrix


class EvidenceUnknown(CompressionError):
    """An allocation asks for what only models of layers have."""

    code = "evidence_unknown"


def entering(lockstep: Lockstep, site: GraphSite, node: Node) -> list[Tensor]:
    """By batch, what a node multiplies with a site; the lockstep stands before the node."""
    name = node.inputs[1 if site.kind == "MatMul (left)" else 0]
    return [values[name] for values in lockstep.values]


def dense_inputs(
    graph: Graph,
    weights: Weights,
    sites: Sequence[GraphSite],
    batches: Batches,
    needs: frozenset[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, InputSums]:
    """Sums over what enters these sites in the dense graph, by name; from one pass. A site that several
    nodes read has the inputs of all of them, taken at the last of them."""
    lockstep = Lockstep(graph, batches)
    nodes = {name: node for node in graph.nodes for name in node.outputs if name}
    readers = {reader: site for site in sites for reader in weights.readers[site.name]}
    held: dict[str, list[tuple[Node, list[Tensor]]]] = {}
    found: dict[str, InputSums] = {}
    for reader in sorted(readers, key=lockstep.places.__getitem__):
        site = readers[reader]
        lockstep.before(reader)
        parts = held.setdefault(site.name, [])
        parts.append((nodes[reader], entering(lockstep, site, nodes[reader])))
        if len(parts) == len(weights.readers[site.name]):
            found[site.name] = summed(site, held.pop(site.name), needs)
            progress(len(found), len(sites))
    return found


class GraphEvidence:
    """Evidence of the dense graph; what takes data is measured when it is first asked for. Every site is a
    layer of its own."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        settings: PruneSettings,
        batches: Batches | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self._graph, self._weights, self._settings, self._batches = graph, weights, settings, batches
        self.progress = progress
        self.sites: Sequence[GraphSite] = weights.sites
        self._by_name = {site.name: site for site in weights.sites}
        self._inputs: Mapping[str, list[SiteStatistics]] | None = None
        self.bounds: Mapping[str, Bounds] = {
            site.name: site_bounds(self.units(site.name), settings.minimum_density, settings.maximum_density)
            for site in weights.sites
        }

    def units(self, site: str) -> int:
        """Weights, or blocks, of a site."""
        return self._by_name[site].size // self._settings.unit

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every site's matrix [out, in]."""
        for site in self.sites:
            yield site.name, matrix(site, to_torch(self._graph.initializers[site.name], site.name))

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """The criterion's scores of every site's units; zeros are below 0."""
        looks = bool(criteria[self._settings.criterion].needs)
        for name, weight in self.weights():
            known = self._known()[name] if looks else None
            found = scores(self._settings, self._by_name[name], weight, known)
            if self._settings.pattern.kind == "block":
                yield name, block_scores(found.masked_fill(weight == 0, 0.0), self._settings.pattern.shape)
            else:
                yield name, zeros_first(found, weight)

    def activations(self, site: str) -> SiteStatistics:
        """Norms of the inputs of a site: [in], of a convolution of several groups [out, in], for each output
        those that it reads."""
        known = self._known()[site]
        if len(known) == 1:
            return known[0]
        rows = self._by_name[site].rows
        norms = torch.cat([one.column_norms.expand(rows, -1) for one in known])
        return SiteStatistics(norms, known[0].tokens)

    def influence(self) -> list[float]:
        """Raises EvidenceUnknown: hidden states pass from layer to layer, and a graph has neither."""
        raise _unknown("how much each layer changes the hidden states")

    def divergence(self, sparsities: Mapping[int, float], sequences: int) -> float:
        """Raises EvidenceUnknown."""
        raise _unknown("the divergence of sub-models")

    def slope(self, layer: int, direction: int, sequences: int) -> float:
        """Raises EvidenceUnknown."""
        raise _unknown("the slope of the loss")

    def _known(self) -> Mapping[str, list[SiteStatistics]]:
        if self._inputs is None:
            assert self._batches is not None
            needs = criteria[self._settings.criterion].needs | {"activations"}
            found = dense_inputs(self._graph, self._weights, self.sites, self._batches, needs, self.progress)
            self._inputs = {name: sums.statistics() for name, sums in found.items()}
        return self._inputs


def _unknown(what: str) -> EvidenceUnknown:
    return EvidenceUnknown(f"this allocation looks at {what}, which is not measured of graphs")
