"""ECoFLaP: layers that the loss is sensitive to keep more, measured by forward passes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compression.allocation import allocations
from compression.allocation.base import Evidence, by_layer, scaled
from compression.parameters import parameter


@allocations.register
@dataclass(frozen=True)
class Ecoflap:
    """Every layer keeps the target density less `ecoflap_maximum`; the rest of the budget goes in proportion
    to the root mean square of zeroth-order slopes of the loss (Sung et al. 2024, ECoFLaP, section 3.2).
    """

    name: ClassVar[str] = "ecoflap"
    summary: ClassVar[str] = (
        "Zeroth-order sensitivity of the loss to each layer decides, by forward passes alone."
    )
    paper: ClassVar[str | None] = "2310.02998"
    needs: ClassVar[frozenset[str]] = frozenset({"slope"})

    ecoflap_maximum: float = parameter(
        0.1, "ECoFLaP: a layer's sparsity is at most the target plus this.", gt=0.0, le=1.0
    )
    ecoflap_directions: int = parameter(
        8, "ECoFLaP: random directions per layer, two forward passes each.", ge=1, le=1024
    )
    ecoflap_sequences: int = parameter(
        16, "ECoFLaP: calibration sequences on which the loss is measured.", ge=1, le=65536
    )

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        layers = sorted({site.layer for site in evidence.sites})
        importance = {}
        for number, layer in enumerate(layers):
            slopes = [
                evidence.slope(layer, direction, self.ecoflap_sequences)
                for direction in range(self.ecoflap_directions)
            ]
            importance[layer] = (sum(slope * slope for slope in slopes) / len(slopes)) ** 0.5
            evidence.progress(number + 1, len(layers))
        total = sum(evidence.units(site.name) for site in evidence.sites)
        floor = max(0.0, 1 - remove_total / total - self.ecoflap_maximum)
        if not any(importance.values()):
            importance = dict.fromkeys(layers, 1.0)
        return scaled(evidence, by_layer(evidence, importance), remove_total, floor)
