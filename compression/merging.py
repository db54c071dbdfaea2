"""Merging dropped layers into layers that stay: what each of these becomes, as whole multiples of dense
layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compression.loading.streamed import StreamedModel

Coefficients = Mapping[int, Mapping[int, int]]
"""By a layer that stays and changes: how many times each dense layer is in it (never zero times)."""


def collapsed(layers: int, rounds: Sequence[Sequence[int]]) -> Coefficients:
    """What becomes of the layers that stay when every round's dropped layers are merged, round after round.

    A run of m layers that are dropped together goes into the layer l that stays before it:
    theta_l + sum over k = 1 ... m of (theta_{l+k} - theta_l) = sum of theta_{l+k} - (m - 1) theta_l
    (Yang et al. 2024, LaCo, equation 1), where the theta are what earlier rounds made of these layers and
    l+1 ... l+m those that follow l by then. Of a run of one layer, that layer's values are all that is left.
    ValueError if a run has no layer before it.
    """
    present = {layer: {layer: 1} for layer in range(layers)}
    for gone in rounds:
        order, base = list(present), None
        run: list[int] = []
        for layer in [*order, None]:
            if layer is not None and layer in gone:
                run.append(layer)
                continue
            if run:
                if base is None:
                    raise ValueError(f"no layer stays before layers {run[0]} to {run[-1]}")
                present[base] = _merged(present[base], [present.pop(one) for one in run])
            run, base = [], layer
    return {layer: found for layer, found in present.items() if found != {layer: 1}}


def _merged(base: Mapping[int, int], run: Sequence[Mapping[int, int]]) -> dict[int, int]:
    found = {layer: (1 - len(run)) * times for layer, times in base.items()}
    for one in run:
        for layer, times in one.items():
            found[layer] = found.get(layer, 0) + times
    return {layer: times for layer, times in sorted(found.items()) if times}


def merged_tensors(model: StreamedModel, layer: int, coefficients: Mapping[int, int]) -> dict[str, Tensor]:
    """The tensors of a layer by stored name, as stored: every parameter of it (norms and biases too) is the
    sum of so many times those of dense layers; summed in float64 and rounded once. `model` is the dense one.
    """
    names = {other: model.block_names(other) for other in coefficients}
    found: dict[str, Tensor] = {}
    for parameter, stored in model.block_names(layer).items():
        total = torch.zeros(model.reader.shape(stored), dtype=torch.float64)
        for other, times in coefficients.items():
            total.add_(model.reader.tensor(names[other][parameter]).to(torch.float64), alpha=times)
        found[stored] = total.to(model.reader.dtype(stored))
    return found
