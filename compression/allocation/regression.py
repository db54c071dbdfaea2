"""What each unit is worth, from the losses of sub-models that lack some of them: ridge regression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-3, 4))


def unit_worth(absent: Tensor, rises: Tensor, prior: Tensor, pools: Sequence[Tensor]) -> Tensor:
    """How much the loss rises without each unit: float64 [units].

    absent: float64 [models, units], 1 where a sub-model lacks a unit; rises: float64 [models], its loss less
    that of the model with all of them, finite; prior: float64 [units], >= 0, a guess of the worth that holds
    within each of the `pools` (int64 indices, together all units) up to a factor.

    First one factor >= 0 for each pool is fitted by least squares. What that leaves of the rises is regressed
    on the units with an intercept and a penalty on the 2-norm, of `PENALTIES` times the mean eigenvalue of
    the Gram matrix that with the least error on sub-models left out one by one; none, where the factors alone
    do better. Solved in as many unknowns as there are sub-models.
    """
    guess = torch.zeros_like(prior)
    columns = torch.stack([absent[:, pool] @ prior[pool] for pool in pools], 1)
    factors = torch.linalg.lstsq(columns, rises[:, None], driver="gelsd").solution[:, 0].clamp_min(0)
    for pool, factor in zip(pools, factors.tolist(), strict=True):
        guess[pool] = factor * prior[pool]
    left = rises - absent @ guess
    left = left - left.mean()
    inputs = absent - absent.mean(0)
    return guess + inputs.T @ _dual(inputs @ inputs.T, left)


def _dual(gram: Tensor, targets: Tensor) -> Tensor:
    """(G + penalty)^-1 y with the best of the penalties, for centred inputs and targets; zeros, if none of
    them is better than the mean."""
    count = len(targets)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    turned = vectors.T @ targets
    best, found = float((targets / (1 - 1 / count)).square().sum()), torch.zeros_like(targets)
    scale = float(values.mean())
    if scale == 0:
        return found
    for penalty in PENALTIES:
        shrunk = 1 / (values + penalty * scale)
        solved = vectors @ (shrunk * turned)
        # 1 - the diagonal of the hat matrix, the intercept's 1 / n included.
        free = (vectors.square() @ (penalty * scale * shrunk)) - 1 / count
        left_out = float((penalty * scale * solved / free.clamp_min(1e-12)).square().sum())
        if math.isfinite(left_out) and left_out < best:
            best, found = left_out, solved
    return found
