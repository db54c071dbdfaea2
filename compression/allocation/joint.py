"""The product of weights and activations, layer by layer, as several allocations look at it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compression.allocation.base import Evidence


def joint_scores(evidence: Evidence) -> Iterator[tuple[int, list[Tensor]]]:
    """|W| * ||X||_2 / sqrt(tokens) of all sites of each layer, float32 [out, in] each; one layer at a
    time."""
    layers = {site.name: site.layer for site in evidence.sites}
    current: list[Tensor] = []
    last: int | None = None
    for name, weight in evidence.weights():
        layer = layers[name]
        if last is not None and layer != last:
            yield last, current
            current = []
        last = layer
        statistics = evidence.activations(name)
        norms = statistics.column_norms.to(weight.device, torch.float32) / max(1, statistics.tokens) ** 0.5
        current.append(weight.to(torch.float32).abs() * norms)
    if last is not None:
        yield last, current
