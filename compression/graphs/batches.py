"""Batches that evidence of units is collected over, and the loss of each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compression.errors import CompressionError
from compression.graphs.graph import Graph
from compression.graphs.probe import Probe, sample_inputs


class BatchInvalid(CompressionError):
    """Batches that evidence cannot be collected from; the message says what is missing."""

    code = "batch_invalid"


@dataclass(frozen=True)
class Batch:
    """Inputs of a network by name, and the int64 class of every sample [samples] where it is known."""

    inputs: Mapping[str, Tensor]
    labels: Tensor | None = None


Batches = Sequence[Batch]


def samples_of(seen: Probe, batch: Batch) -> int:
    """How many samples a batch has: the size of the first axis of an input that varies; 1 where the graph
    fixes all sizes, whose batch counts as one sample."""
    for value in seen.graph.inputs:
        for axis in range(len(seen.shape(value.name))):
            if seen.varies(value.name, axis):
                return int(batch.inputs[value.name].shape[axis])
    return 1


def class_weights(batches: Iterable[Batch]) -> NDArray[np.float64]:
    """By class, how much a sample of it weighs, so that all classes weigh the same and the mean weight is
    1; float64 [classes]. Statistics with these weights are means over the classes of the means within
    them. BatchInvalid without labels."""
    counts = np.zeros(0, dtype=np.int64)
    for batch in batches:
        if batch.labels is None:
            raise BatchInvalid("statistics balanced over classes need the class of every sample: give labels")
        seen = torch.bincount(batch.labels.flatten().cpu(), minlength=len(counts)).numpy()
        seen[: len(counts)] += counts
        counts = seen
    present = counts > 0
    weights = np.zeros(len(counts), dtype=np.float64)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def sample_weights(batch: Batch, samples: int, weights: NDArray[np.float64] | None) -> Tensor:
    """What every sample weighs; float64 [samples]."""
    if weights is None or batch.labels is None:
        return torch.ones(samples, dtype=torch.float64)
    return torch.from_numpy(weights)[batch.labels.flatten().cpu()]


def first_samples(seen: Probe, batches: Batches, most: int) -> list[Batch]:
    """The first `most` samples, at least one, in the batches they came in; the last is cut short. A graph
    that takes one size of batch alone keeps whole batches."""
    found: list[Batch] = []
    left = max(most, 1)
    for batch in batches:
        samples = samples_of(seen, batch)
        if left <= 0:
            break
        found.append(batch if samples <= left else _cut_short(seen, batch, left))
        left -= samples
    return found


def _cut_short(seen: Probe, batch: Batch, count: int) -> Batch:
    inputs = {}
    for name, tensor in batch.inputs.items():
        axis = next((axis for axis in range(tensor.ndim) if seen.varies(name, axis)), None)
        inputs[name] = tensor if axis is None else tensor.narrow(axis, 0, count)
    return Batch(inputs, None if batch.labels is None else batch.labels[:count])


def cross_entropy(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Cross entropy of the first output, logits [samples, classes, ...], in nats, averaged over what other
    axes it has; [samples]. BatchInvalid where labels and logits do not fit."""
    name, logits = next(iter(outputs.items()))
    labels = batch.labels
    if labels is None:
        raise BatchInvalid("the loss needs the class of every sample: give labels")
    if logits.ndim < 2 or (logits.shape[0], *logits.shape[2:]) != tuple(labels.shape):
        raise BatchInvalid(
            f"the output {name!r} is of shape {tuple(logits.shape)}, which does not fit labels of shape "
            f"{tuple(labels.shape)}: logits have [samples, classes, ...]"
        )
    if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
        raise BatchInvalid(f"labels are classes 0 to {logits.shape[1] - 1} of the output {name!r}")
    losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def distance(outputs: Mapping[str, Tensor], dense: Mapping[str, Tensor], samples: int) -> Tensor:
    """Half the squared distance of all float outputs to those of the dense network; [samples]."""
    parts = [
        (tensor - dense[name]).square().reshape(samples, -1).sum(1) / 2
        for name, tensor in outputs.items()
        if tensor.is_floating_point()
    ]
    return torch.stack(parts).sum(0)


def gaussian_batches(graph: Graph, count: int, size: int, sizes: Mapping[str, int], seed: int) -> list[Batch]:
    """Batches without data: inputs of unit Gaussians (integers are zero), `count` of `size` samples."""
    return [Batch(sample_inputs(graph, size, sizes, seed=seed + place)) for place in range(count)]
