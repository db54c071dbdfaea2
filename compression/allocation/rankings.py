"""LIM and ZD: layers in an order of importance, sparsity rising evenly along it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.allocation import allocations
from compression.allocation.base import Evidence, by_layer, mean_sparsity, shifted
from compression.parameters import parameter

_REACH = "LIM and ZD: the sparsity of the least important layer is so much above the target."


@allocations.register
@dataclass(frozen=True)
class Lim:
    """The order of 1 - cos(input, output) of each layer (Dumitru et al. 2024, Layer-Wise Quantization,
    score LIM)."""

    name: ClassVar[str] = "lim"
    summary: ClassVar[str] = (
        "Layers in the order of how much they change the hidden states; only the order counts."
    )
    paper: ClassVar[str | None] = "2406.17415"
    needs: ClassVar[frozenset[str]] = frozenset({"influence"})

    rank_reach: float = parameter(0.1, _REACH, ge=0.0, le=0.5)

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        return ranked(evidence, dict(enumerate(evidence.influence())), self.rank_reach, remove_total)


@allocations.register
@dataclass(frozen=True)
class Zd:
    """The order of the share of weights more than one standard deviation above their mean: fewer means more
    important (Dumitru et al. 2024, score ZD). Needs no data.
    """

    name: ClassVar[str] = "zd"
    summary: ClassVar[str] = "Layers in the order of how few weights lie far above the mean. Needs no data."
    paper: ClassVar[str | None] = "2406.17415"
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    rank_reach: float = parameter(0.1, _REACH, ge=0.0, le=0.5)

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        layers = {site.name: site.layer for site in evidence.sites}
        far: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for name, weight in evidence.weights():
            values = weight.to(torch.float32)
            deviation, mean = torch.std_mean(values, correction=0)
            layer = layers[name]
            far[layer] = far.get(layer, 0) + int((values > mean + deviation).sum())
            sizes[layer] = sizes.get(layer, 0) + values.numel()
        importance = {layer: -far[layer] / sizes[layer] for layer in far}
        return ranked(evidence, importance, self.rank_reach, remove_total)


def ranked(
    evidence: Evidence, importance: Mapping[int, float], reach: float, remove_total: int
) -> dict[str, int]:
    """Sparsities from target - reach (most important) to target + reach (least), evenly by rank; ties by
    place."""
    present = {site.layer for site in evidence.sites}
    order = sorted((layer for layer in importance if layer in present), key=lambda k: (-importance[k], k))
    centre = mean_sparsity(evidence, remove_total)
    steps = max(1, len(order) - 1)
    sparsities = {
        layer: centre + (reach * (2 * place / steps - 1) if len(order) > 1 else 0.0)
        for place, layer in enumerate(order)
    }
    return shifted(evidence, by_layer(evidence, sparsities), remove_total)
