"""ShortGPT: how much layers turn the hidden states."""

from __future__ import annotations

from collections.abc import Sequence

from compression.criteria.dropping import LayerEvidence, runs
from compression.criteria.layers import layer_criteria
from compression.criteria.layers.angular import cosines


@layer_criteria.register
class BlockInfluence:
    """1 - the mean over tokens of the cosine between the states before and after, added over the runs (Men et
    al. 2024, equation 1, there for single layers)."""

    name = "block-influence"
    summary = "One minus the mean cosine between the hidden states before and after a run of layers."
    paper = "2403.03853"
    needs = frozenset({"activations"})

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """In [0, 2] for each run."""
        return sum(
            1.0 - float(cosines(evidence.state(start), evidence.state(end)).mean())
            for start, end in runs(gone)
        )
