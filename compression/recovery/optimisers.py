"""One step of an optimiser on one tensor, in place; the state is the caller's."""

from __future__ import annotations

import math

from torch import Tensor

STATES = {"adamw": ("mean", "square"), "sgd": ("velocity",)}
"""By optimiser, the tensors that it keeps for every master."""


def adamw(master: Tensor, mean: Tensor, square: Tensor, step: int, rate: float, decay: float) -> None:
    """One AdamW update in place, betas 0.9 and 0.999 (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    gradient = master.grad
    if gradient is None:
        return
    master.mul_(1 - rate * decay)
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    denominator = square.sqrt().div_(math.sqrt(1 - 0.999**step)).add_(1e-8)
    master.addcdiv_(mean, denominator, value=-rate / (1 - 0.9**step))


def sgd(
    master: Tensor, velocity: Tensor, rate: float, momentum: float, decay: float, *, nesterov: bool
) -> None:
    """One update of gradient descent with momentum in place, as `torch.optim.SGD` makes it: the weight
    decay is part of the gradient, the velocity starts at 0 and is not dampened (Sutskever et al. 2013)."""
    gradient = master.grad
    if gradient is None:
        return
    if decay:
        gradient = gradient.add(master, alpha=decay)
    if momentum:
        velocity.mul_(momentum).add_(gradient)
        gradient = gradient.add(velocity, alpha=momentum) if nesterov else velocity
    master.add_(gradient, alpha=-rate)
