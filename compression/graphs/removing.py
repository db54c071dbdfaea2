"""How much the loss rises without a unit, measured by closing its gates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compression.graphs.batches import (
    Batches,
    class_weights,
    cross_entropy,
    distance,
    first_samples,
    sample_weights,
    samples_of,
)
from compression.graphs.evidence import Collecting, Floats
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gates


def rises(
    module: GraphModule, gates: Gates, batches: Batches, weights: Floats | None, how: Collecting
) -> Floats:
    """By unit, the mean loss without it less that of the dense network. With `together` above 1 that many
    neighbours of a group go at once and share the rise. The first `removal_samples` samples are used. Not a
    number for units of groups that gates say nothing of."""
    used = first_samples(gates.anatomy.probe, batches, how.removal_samples)
    if weights is not None:  # of the samples that are used, so that their classes weigh the same
        weights = class_weights(used)
    with torch.no_grad():
        dense = [module.run(batch.inputs) for batch in used]
        before = _mean_loss(module, gates, used, dense, weights)
        found = np.full(gates.units, np.nan)
        for group in gates.anatomy.groups:
            if group.name in gates.silent:
                continue
            first = gates.first[group.name]
            for start in range(0, group.units, how.together):
                part = np.arange(first + start, first + min(start + how.together, group.units))
                with closed(module, gates, part):
                    after = _mean_loss(module, gates, used, dense, weights)
                found[part] = (after - before) / len(part)
    return found


@contextlib.contextmanager
def closed(module: GraphModule, gates: Gates, units: NDArray[np.int64]) -> Iterator[None]:
    """Meanwhile the gates of these units are closed."""
    ends = []
    for gate in gates.gates:
        shut = np.isin(gate.units, units)
        if shut.any():
            kept = torch.from_numpy(~shut)

            def close(tensor: Tensor, kept: Tensor = kept, axis: int = gate.axis) -> Tensor:
                shape = [1] * tensor.ndim
                shape[axis] = -1
                return tensor * kept.to(tensor.device, tensor.dtype).reshape(shape)

            ends.append(module.watch(gate.value, close))
    try:
        yield
    finally:
        for end in ends:
            end()


def _mean_loss(
    module: GraphModule,
    gates: Gates,
    batches: Batches,
    dense: list[dict[str, Tensor]],
    weights: Floats | None,
) -> float:
    total = weighed_samples = 0.0
    for batch, wanted in zip(batches, dense, strict=True):
        samples = samples_of(gates.anatomy.probe, batch)
        weighed = sample_weights(batch, samples, weights)
        outputs = module.run(batch.inputs)
        losses = distance(outputs, wanted, samples) if batch.labels is None else cross_entropy(outputs, batch)
        total += float(weighed @ losses.detach().to("cpu", torch.float64))
        weighed_samples += float(weighed.sum())
    return total / weighed_samples
