"""Evidence for allocations from plain data, with no model behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from compression.allocation.base import Evidence
from compression.anatomy.inspection import Site
from compression.criteria.base import SiteStatistics
from compression.densities import Bounds


def bounds_of(units: int, minimum: str = "0", maximum: str = "1") -> Bounds:
    """Bounds by densities, as fractions: at least `minimum` stays, and at most `maximum` where that can
    be."""
    most = sum(1 for gone in range(1, units + 1) if Fraction(units - gone, units) >= Fraction(minimum))
    least = next(gone for gone in range(units + 1) if Fraction(units - gone, units) <= Fraction(maximum))
    return Bounds(min(least, most), most)


@dataclass
class PlainEvidence:
    """What is known of a model that is only data. `values` are the scores of a site's units; by default those
    of its weight's magnitudes, with weights that are zero below zero.
    """

    sites: Sequence[Site]
    bounds: Mapping[str, Bounds]
    tensors: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    influences: Sequence[float] = ()
    cost: Callable[[Mapping[int, float], int], float] | None = None
    slopes: Callable[[int, int, int], float] | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: int = 16
    heard: list[tuple[int, int]] = field(default_factory=list)

    def units(self, site: str) -> int:
        return self.values[site].numel() if site in self.values else self.tensors[site].numel()

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        for site in self.sites:
            weight = self.tensors[site.name]
            yield site.name, self.values.get(site.name, weight.abs().float().masked_fill(weight == 0, -1.0))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for site in self.sites:
            yield site.name, self.tensors[site.name]

    def activations(self, site: str) -> SiteStatistics:
        return SiteStatistics(self.norms[site], self.tokens, torch.zeros_like(self.norms[site]))

    def influence(self) -> list[float]:
        return list(self.influences)

    def divergence(self, sparsities: Mapping[int, float], sequences: int) -> float:
        assert self.cost is not None
        assert sequences > 0
        assert all(0 <= value <= 1 for value in sparsities.values())
        return self.cost(sparsities, sequences)

    def slope(self, layer: int, direction: int, sequences: int) -> float:
        assert self.slopes is not None
        return self.slopes(layer, direction, sequences)

    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total
        self.heard.append((done, total))


def made(
    shapes: Sequence[Sequence[tuple[int, int]]],
    *,
    seed: int = 0,
    minimum: str = "0",
    maximum: str = "1",
    levels: int | None = None,
) -> PlainEvidence:
    """Evidence with random contents; `shapes` lists for each layer the shapes of its sites."""
    generator = torch.Generator().manual_seed(seed)
    sites, tensors, norms = [], {}, {}
    for layer, parts in enumerate(shapes):
        for number, shape in enumerate(parts):
            name = f"layers.{layer}.{number}.weight"
            weight = torch.randn(shape, generator=generator) * (1 + torch.rand(1, generator=generator))
            if levels is not None:
                weight = (weight * levels).trunc()
            weight[torch.rand(shape, generator=generator) < 0.05] = 0.0
            sites.append(Site(name, layer, shape, f"kind{number}"))
            tensors[name] = weight
            norms[name] = torch.rand(shape[1], generator=generator) * 5
    draws = torch.rand(4, len(shapes), generator=generator).tolist()
    evidence = PlainEvidence(
        sites,
        {site.name: bounds_of(site.size, minimum, maximum) for site in sites},
        tensors,
        norms,
        draws[0],
        lambda sparsities, sequences: sum(
            (1 + draws[1][layer]) * value**2 for layer, value in sparsities.items()
        ),
        lambda layer, direction, sequences: draws[2][layer] * (-1) ** direction,
    )
    checked: Evidence = evidence
    assert checked is evidence
    return evidence
