"""Merging: the expert that stays of a cluster takes over what the others knew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.criteria.units import EXPERTS, Cluster, Units
from compression.updates.structures import structure_updates


@structure_updates.register
class ExpertMerge:
    """The expert that stays of a cluster becomes the mean of its members, each weighed by what the router
    gave it on the calibration data; so do the rows of the router. STUN takes the plain mean, and only where
    few clusters are left (Lee et al. 2024, selective reconstruction); weighing by use follows M-SMoE (Li et
    al. 2024). Experts of a cluster to which no token was sent weigh alike."""

    name = "expert-merge"
    summary = "The expert that stays of a cluster becomes its mean, weighed by what the router gave each."
    paper = "2409.06211"
    needs = frozenset({"routing", "clusters"})
    kinds = EXPERTS

    def mix(self, units: Units, clusters: Sequence[Cluster], mixing: Tensor) -> Tensor:
        """Rows of weights of the members: float64 [kept, units]. ValueError without statistics."""
        weights = units.used().weights
        found = torch.zeros_like(mixing)
        for place, (_, members) in enumerate(sorted(clusters)):
            mine = weights[members]
            total = float(mine.sum())
            found[place, members] = mine / total if total > 0 else torch.full_like(mine, 1 / len(members))
        return found
