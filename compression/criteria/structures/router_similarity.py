"""STUN: one expert of every cluster of experts that behave alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.anatomy.structures import Kind
from compression.criteria.structures import structure_criteria
from compression.criteria.units import EXPERTS, Cluster, Units, chosen
from compression.parameters import parameter


@structure_criteria.register
@dataclass(frozen=True)
class RouterSimilarity:
    """Experts are clustered by d_ij = ||r_i - r_j||_2 / m - c * a_ij / b, r being the rows of the router,
    a_ij how many tokens are sent to both, m and b the means of both over all pairs and c the
    `coactivation_weight`. The two clusters whose farthest members are nearest become one until as many are
    left as experts stay; of each, the expert stays whose weights are nearest to their mean (Lee et al. 2024,
    STUN's first stage). The paper puts one threshold on d_ij for all layers, so that layers keep different
    numbers; here every layer keeps as many."""

    name: ClassVar[str] = "router-similarity"
    summary: ClassVar[str] = "One expert of every cluster with similar router rows and common tokens."
    paper: ClassVar[str | None] = "2409.06211"
    needs: ClassVar[frozenset[str]] = frozenset({"routing"})
    kinds: ClassVar[frozenset[Kind]] = EXPERTS

    coactivation_weight: float = parameter(
        1.0, "How much common tokens count beside the distance of router rows; 0: nothing.", ge=0, le=100
    )

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """1 for the expert that stays of each cluster, 0 for the others: float64 [units]. ValueError without
        statistics."""
        return chosen((stays for stays, _ in self.clusters(units)), units.count)

    def clusters(self, units: Units) -> list[Cluster]:
        """Of each cluster the expert that stays and all its members, in order. ValueError without
        statistics."""
        found = clustered(self.distances(units), units.keep)
        products = weight_products(units)
        return [(nearest(products, members), members) for members in found]

    def distances(self, units: Units) -> Tensor:
        """d_ij float64 [units, units]. ValueError without statistics."""
        if units.router is None:
            raise ValueError("this criterion needs the rows of the router")
        rows = units.router.to(torch.float64)
        apart = torch.linalg.vector_norm(rows[:, None] - rows[None], dim=2)
        together = units.used().together.to(torch.float64)
        return _by_mean(apart) - self.coactivation_weight * _by_mean(together)


def _by_mean(values: Tensor) -> Tensor:
    """Values of pairs [n, n] divided by their mean over pairs of two; as they are if that is 0."""
    count = len(values)
    mean = float(values.sum() - values.diagonal().sum()) / max(1, count * (count - 1))
    return values / mean if mean > 0 else values


def clustered(distances: Tensor, count: int) -> list[list[int]]:
    """`count` clusters of what has these distances [n, n], by complete linkage; members ascend, and so do the
    first members of clusters. Of equal distances, those of the first clusters are taken."""
    clusters = {number: [number] for number in range(len(distances))}
    linkage = distances.clone().fill_diagonal_(float("inf"))
    while len(clusters) > count:
        first, second = divmod(int(linkage.argmin()), len(distances))
        clusters[first] = sorted(clusters[first] + clusters.pop(second))
        farthest = torch.maximum(linkage[first], linkage[second])
        linkage[first], linkage[:, first], linkage[first, first] = farthest, farthest, float("inf")
        linkage[second], linkage[:, second] = float("inf"), float("inf")
    return [clusters[number] for number in sorted(clusters)]


def weight_products(units: Units) -> Tensor:
    """Inner products of everything that two units own: float64 [units, units]."""
    total = torch.zeros(units.count, units.count, dtype=torch.float64)
    for piece in units.pieces:
        rows = piece.weight.reshape(units.count, -1).to(torch.float64)
        total += (rows @ rows.T).cpu()
    return total


def nearest(products: Tensor, members: list[int]) -> int:
    """The member whose weights are nearest to the mean of all members', the first of equals."""
    inside = products[members][:, members]
    # ||w_i - mean||^2 but for the term that all share.
    apart = inside.diagonal() - 2 * inside.mean(1)
    return members[int(apart.argmin())]
