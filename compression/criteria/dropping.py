"""What a criterion of layers is given and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from torch import Tensor


class LayerEvidence(Protocol):
    """What is known of the model without some of its layers, and with the rest as the update leaves it."""

    def state(self, boundary: int) -> Tensor:
        """Hidden states [tokens, hidden] of the dense model before layer `boundary` (after the last layer for
        the number of layers); the same tokens at every boundary."""
        ...

    def loss(self, gone: Sequence[int]) -> float:
        """Mean loss over calibration sequences without these layers."""
        ...

    def divergence(self, gone: Sequence[int]) -> float:
        """Mean Kullback-Leibler divergence of what the model predicts without these layers from what the
        dense one does, or 1 - cos of the last hidden states of models without a head."""
        ...

    def similarity(self, gone: Sequence[int]) -> float:
        """Mean over tokens of the cosine of the states after the last layer, without these layers, to those
        of the dense model."""
        ...


class LayerCriterion(Protocol):
    """What it costs to be without layers; the cheapest go first."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def cost(self, evidence: LayerEvidence, gone: Sequence[int]) -> float:
        """The cost, finite, of being without the layers `gone` (ascending, one at least)."""
        ...


def runs(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers among ascending ones, each as (first, last + 1)."""
    start = end = layers[0]
    for layer in layers:
        if layer > end:
            yield start, end
            start = layer
        end = layer + 1
    yield start, end
