"""DLP: layers whose median score is small keep more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.allocation import allocations
from compression.allocation.base import Evidence, around, by_layer, mean_sparsity, shifted
from compression.allocation.joint import joint_scores
from compression.parameters import parameter


@allocations.register
@dataclass(frozen=True)
class Dlp:
    """Importance of a layer = 1 - its share of the sum of the layers' medians of |W| * ||X|| (Chen et al.
    2025, Dynamic Layerwise Pruning in Large Language Models); no threshold for outliers has to be chosen.
    """

    name: ClassVar[str] = "dlp"
    summary: ClassVar[str] = (
        "Layers with a large median of |W| * ||X|| lose more; no outlier threshold to choose."
    )
    paper: ClassVar[str | None] = "2505.23807"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "activations"})

    dlp_reach: float = parameter(
        0.05,
        "DLP: how far a layer's sparsity may be from the target; the paper's 0.15 suits 32 layers and more.",
        ge=0.0,
        le=0.5,
    )

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        medians = {
            layer: float(torch.cat([part.reshape(-1) for part in scores]).median())
            for layer, scores in joint_scores(evidence)
        }
        whole = sum(medians.values()) or 1.0
        importance = {layer: 1 - median / whole for layer, median in medians.items()}
        sparsities = around(importance, mean_sparsity(evidence, remove_total), self.dlp_reach)
        return shifted(evidence, by_layer(evidence, sparsities), remove_total)
