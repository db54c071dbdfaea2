"""OWL: layers with more outliers keep more."""

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
class Owl:
    """Sparsity around the target by the share of outliers: scores |W| * ||X|| above `owl_outlier` times
    their mean within the layer (Yin et al. 2024, Outlier Weighed Layerwise Sparsity, section 3).
    """

    name: ClassVar[str] = "owl"
    summary: ClassVar[str] = "Layers with more outliers among |W| * ||X|| keep more; the range is small."
    paper: ClassVar[str | None] = "2310.05175"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "activations"})

    owl_outlier: float = parameter(
        5.0, "OWL: an outlier is so many times the mean score of its layer.", gt=1.0, le=1000.0
    )
    owl_reach: float = parameter(
        0.08, "OWL: how far a layer's sparsity may be from the target.", ge=0.0, le=0.5
    )

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        ratios = {layer: outlier_ratio(scores, self.owl_outlier) for layer, scores in joint_scores(evidence)}
        sparsities = around(ratios, mean_sparsity(evidence, remove_total), self.owl_reach)
        return shifted(evidence, by_layer(evidence, sparsities), remove_total)


def outlier_ratio(scores: list[torch.Tensor], times: float) -> float:
    """Share of the scores of a layer (several tensors) that exceed `times` their common mean."""
    count = sum(part.numel() for part in scores)
    mean = sum(float(part.sum(dtype=torch.float64)) for part in scores) / max(1, count)
    return sum(int((part > times * mean).sum()) for part in scores) / max(1, count)
