"""How far the predictions of the model that is left are from the dense one's."""

from __future__ import annotations

from collections.abc import Sequence

from compression.criteria.dropping import LayerEvidence
from compression.criteria.layers import layer_criteria


@layer_criteria.register
class Divergence:
    """The mean divergence of the predictions without the layers from the dense model's; needs no labels.

    Zhang et al. 2024, FinerCut, section 3, which takes the Jensen-Shannon divergence of sub-layers.
    """

    name = "divergence"
    summary = "Divergence of the predictions without the layers from the dense model's."
    paper = "2405.18218"
    needs = frozenset({"divergence"})

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """In nats; 1 - cos for models without a head."""
        return evidence.divergence(gone)
