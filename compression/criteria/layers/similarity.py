"""LaCo: how like the last hidden states stay."""

from __future__ import annotations

from collections.abc import Sequence

from compression.criteria.dropping import LayerEvidence
from compression.criteria.layers import layer_criteria


@layer_criteria.register
class Similarity:
    """1 - the mean over tokens of the cosine of the last hidden states to the dense model's.

    Yang et al. 2024, LaCo, algorithm 1, where all states of a sentence make one vector; taken token by token,
    tokens with large states do not outweigh the others.
    """

    name = "similarity"
    summary = "One minus the mean cosine of the last hidden states without the layers to the dense model's."
    paper = "2402.11187"
    needs = frozenset({"divergence"})

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """In [0, 2]."""
        return 1.0 - evidence.similarity(gone)
