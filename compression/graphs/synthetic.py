"""Batches without data: noise with the spectrum of images, and inputs that look to every BatchNormalization
as the training data did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compression.graphs.batches import Batch, BatchInvalid, gaussian_batches
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph

SPATIAL = 4
"""Inputs of so many axes [batch, channels, height, width] are taken for images."""
RATE = 0.1
"""Adam's step size for the inputs."""


def image_noise(graph: Graph, count: int, size: int, sizes: Mapping[str, int], seed: int) -> list[Batch]:
    """`count` batches of `size` samples: Gaussians of mean 0 and variance 1 whose amplitude falls with one
    over the frequency where an input is of images, as that of photographs does (Field 1987, Relations between
    the statistics of natural images and the response properties of cortical cells); white noise elsewhere.
    Inputs of integers are zero."""
    return [
        Batch({name: _coloured(one) for name, one in batch.inputs.items()})
        for batch in gaussian_batches(graph, count, size, sizes, seed)
    ]


def _coloured(noise: Tensor) -> Tensor:
    if noise.ndim != SPATIAL or not noise.is_floating_point() or max(noise.shape[2:]) < 2:
        return noise
    height, width = noise.shape[2:]
    across = torch.fft.fftfreq(width, dtype=torch.float64)
    frequency = (torch.fft.fftfreq(height, dtype=torch.float64)[:, None].square() + across.square()).sqrt()
    frequency[0, 0] = 1 / max(height, width)  # the mean varies as the slowest wave does
    amplitude = 1 / frequency
    amplitude = amplitude / amplitude.square().mean().sqrt()
    made: Tensor = torch.fft.ifft2(torch.fft.fft2(noise.double()) * amplitude).real
    return made.to(noise.dtype)


def remembered_batches(
    graph: Graph, count: int, size: int, sizes: Mapping[str, int], seed: int, steps: int = 200
) -> list[Batch]:
    """`count` batches of `size` samples: unit Gaussians that are changed, by `steps` of Adam, until mean and
    deviation of what enters every BatchNormalization are near its running ones (Cai et al. 2020, ZeroQ,
    arXiv:2001.00281, each term over the running variance so that layers weigh the same). Inputs of
    integers stay zero.

    BatchInvalid for a graph without BatchNormalization, as exporters leave it that fold them into
    convolutions: nothing there remembers the data.
    """
    if not any(node.operator == "BatchNormalization" for node in graph.nodes):
        raise BatchInvalid(
            "the graph has no BatchNormalization whose statistics inputs could be drawn from; "
            "export it in training mode, or use batches of Gaussians or data"
        )
    module = GraphModule(graph).eval()
    module.requires_grad_(False)
    return [_nearer(module, batch, steps) for batch in gaussian_batches(graph, count, size, sizes, seed)]


def _nearer(module: GraphModule, batch: Batch, steps: int) -> Batch:
    inputs = {
        name: one.clone().requires_grad_() if one.is_floating_point() else one
        for name, one in batch.inputs.items()
    }
    changed = [one for one in inputs.values() if one.requires_grad]
    optimizer = torch.optim.Adam(changed, RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        distance = statistics_distance(module, Batch(inputs))
        distance.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Batch({name: one.detach() for name, one in inputs.items()})


def statistics_distance(module: GraphModule, batch: Batch) -> Tensor:
    """The sum over BatchNormalizations of the mean over channels of ((mean - running mean)^2 + (deviation -
    running deviation)^2) / running variance of what enters them; a number."""
    parts: list[Tensor] = []

    def compare(running: Tensor, variance: Tensor) -> Callable[[Tensor], None]:
        def note(tensor: Tensor) -> None:
            spread, mean = torch.var_mean(tensor.movedim(1, -1).flatten(0, -2), dim=0, correction=0)
            apart = (mean - running).square() + ((spread + 1e-8).sqrt() - variance.sqrt()).square()
            parts.append((apart / variance.clamp(min=1e-8)).mean())

        return note

    ends = [
        module.watch(
            node.inputs[0], compare(module.initializer(node.inputs[3]), module.initializer(node.inputs[4]))
        )
        for node in module.graph.nodes
        if node.operator == "BatchNormalization"
    ]
    try:
        module.run(batch.inputs)
    finally:
        for end in ends:
            end()
    return torch.stack(parts).sum()
