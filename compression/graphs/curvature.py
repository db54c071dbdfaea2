"""Second derivatives of the mean loss with respect to the weights that make units."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.graphs.batches import Batch, Batches, cross_entropy, distance, sample_weights, samples_of
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Collecting, Floats
from compression.graphs.executor import GraphModule
from compression.seeds import site_generator


def curvatures(
    anatomy: Anatomy, batches: Batches, weights: Floats | None, needs: frozenset[str], how: Collecting
) -> dict[str, dict[str, Floats]]:
    """By statistic and initializer, float64 of its shape. "curvature.trace": the diagonal of the Hessian by
    Hutchinson's estimate v * (H v), v of random signs, drawn anew for each batch; its sum over any weights is
    an unbiased estimate of their trace. "curvature.self": H w, w all the weights that make units, so that
    blocks of the Hessian between layers count (Sun et al. 2025, Optimal Brain Apoptosis). "gradient"."""
    module = GraphModule(anatomy.graph).eval()
    module.requires_grad_(False)
    trained = module.named_weights()
    names = sorted(
        {site.initializer for group in anatomy.groups for site in group.producers()} & set(trained)
    )
    parameters = [trained[name].requires_grad_() for name in names]
    generator = site_generator(how.seed, "signs of Hutchinson's estimate")
    totals = {
        need: [torch.zeros(one.shape, dtype=torch.float64) for one in parameters]
        for need in ("curvature.trace", "curvature.self", "gradient")
        if need in needs or need == "gradient"
    }
    weighed_samples = 0.0
    for batch in batches:
        weighed = sample_weights(batch, samples_of(anatomy.probe, batch), weights)
        share = float(weighed.sum())
        loss = _loss(module, anatomy, batch, weighed)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(one) if slope is None else slope
            for one, slope in zip(parameters, slopes, strict=True)
        ]
        _add(totals["gradient"], filled, 1.0)
        if "curvature.self" in needs:
            _add(
                totals["curvature.self"],
                _product(filled, parameters, [one.detach() for one in parameters]),
                1.0,
            )
        for _ in range(how.probes if "curvature.trace" in needs else 0):
            signs = [_signs(one, generator) for one in parameters]
            made = _product(filled, parameters, signs)
            _add(totals["curvature.trace"], [a * b for a, b in zip(made, signs, strict=True)], 1 / how.probes)
        weighed_samples += share
    return {
        need: {name: (one / weighed_samples).numpy() for name, one in zip(names, made, strict=True)}
        for need, made in totals.items()
    }


def _loss(module: GraphModule, anatomy: Anatomy, batch: Batch, weighed: Tensor) -> Tensor:
    outputs = module.run(batch.inputs)
    if batch.labels is not None:
        losses = cross_entropy(outputs, batch)
    else:
        dense = {name: one.detach() for name, one in outputs.items()}
        losses = distance(outputs, dense, samples_of(anatomy.probe, batch))
    return (losses * weighed.to(losses.device, losses.dtype)).sum()


def _product(slopes: list[Tensor], parameters: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
    """The Hessian times a vector: the derivative of <gradient, vector>."""
    dot = torch.stack([(a * b).sum() for a, b in zip(slopes, vectors, strict=True)]).sum()
    if not dot.requires_grad:
        return [torch.zeros_like(one) for one in parameters]
    made = torch.autograd.grad(dot, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(b) if a is None else a for a, b in zip(made, parameters, strict=True)]


def _add(totals: list[Tensor], parts: list[Tensor], share: float) -> None:
    for total, part in zip(totals, parts, strict=True):
        total += part.detach().to("cpu", torch.float64) * share


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return drawn.to(like.device, like.dtype)
