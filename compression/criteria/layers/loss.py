"""The loss of the model that is left."""

from __future__ import annotations

from collections.abc import Sequence

from compression.criteria.dropping import LayerEvidence
from compression.criteria.layers import layer_criteria


@layer_criteria.register
class Loss:
    """The mean loss over calibration sequences without the layers (Muralidharan et al. 2024, section 2.2,
    perplexity; Song et al. 2024, SLEB, section 3.3, where layers go one by one)."""

    name = "loss"
    summary = "The loss of the model without the layers, over calibration sequences."
    paper = "2407.14679"
    needs = frozenset({"loss"})

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """In nats."""
        return evidence.loss(gone)
