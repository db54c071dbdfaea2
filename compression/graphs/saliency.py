"""How much the loss hangs on all weights of a unit together."""

from __future__ import annotations

import numpy as np
import torch

from compression.graphs.batches import Batches, BatchInvalid, cross_entropy, sample_weights, samples_of
from compression.graphs.criteria.base import slice_sums
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Floats
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gates


def squared_group_gradients(
    anatomy: Anatomy, gates: Gates, batches: Batches, weights: Floats | None
) -> Floats:
    """By unit, the mean over batches of (sum of g w)^2, over all weights w that go with the unit (those that
    make it, read it and scale it), g the derivative of the batch's mean loss; float64 [units]. BatchInvalid
    without labels: the distance to the dense outputs has no gradient at the dense network."""
    module = GraphModule(anatomy.graph).eval()
    trained = module.named_weights()
    owned = {site.initializer for group in anatomy.groups for site in group.sites}
    names = sorted(owned & set(trained))
    module.requires_grad_(False)
    parameters = [trained[name].requires_grad_() for name in names]
    total, count = np.zeros(gates.units), 0.0
    for batch in batches:
        if batch.labels is None:
            raise BatchInvalid("the gradient of the loss needs the class of every sample: give labels")
        weighed = sample_weights(batch, samples_of(anatomy.probe, batch), weights)
        losses = cross_entropy(module.run(batch.inputs), batch)
        mean = (losses * weighed.to(losses.device, losses.dtype)).sum() / float(weighed.sum())
        slopes = torch.autograd.grad(mean, parameters, allow_unused=True)
        products = {
            name: (slope * one.detach()).to("cpu", torch.float64).numpy()
            for name, slope, one in zip(names, slopes, parameters, strict=True)
            if slope is not None
        }
        share = float(weighed.sum())
        for group in anatomy.groups:
            sums = [
                slice_sums(products[site.initializer], site)
                for site in group.sites
                if site.initializer in products
            ]
            if sums:
                total[gates.of(group)] += share * np.sum(sums, axis=0) ** 2
        count += share
    found: Floats = total / count
    return found
