"""D-Pruner: what a weight is worth to a domain, and to everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria import criteria
from compression.criteria.base import SiteStatistics, needed
from compression.parameters import parameter


@criteria.register
@dataclass(frozen=True)
class DPruner:
    """|g_d w - F_d w^2 / 2 - lambda G w^2|, the change of a regularised domain loss when w is removed (Zhang
    et al. 2024, Pruning as a Domain-specific LLM Extractor, section 3).

    General importance is the error that removal causes on general text, to second order, with the Fisher
    diagonal F = E[g^2] for the Hessian: L(w) - L(0) ~ g w - F w^2 / 2, so G = |g_g w - F_g w^2 / 2|. It
    weighs a regulariser of the loss on the domain, as a function of changed weights w':
    L'(w') = L_d(w') + lambda sum of G (w' - w)^2. One-shot pruning takes a single w' to 0 and leaves w as it
    is, so of the regulariser the gradient at w is 0 and the second derivative 2 lambda G, both exactly; with
    F_d for the Hessian of L_d, L'(w) - L'(0) ~ g_d w - F_d w^2 / 2 - lambda G w^2, of which the importance is
    the absolute value. (The paper fine-tunes on the way, which makes its regulariser act through the steps of
    the optimiser; here there are none.)

    The first-order terms g w are left out unless d_pruner_first_order is set: at trained weights the mean
    gradient is near zero, and that of a sample is mostly noise, which can also cancel F w^2 / 2. On llama-5m
    they made the criterion worse than magnitude (tests/bench/results/domain_quality.md).

    The change w is measured in root mean squares of its weight matrix: lambda = d_pruner_lambda / mean(W^2).
    G is a loss already, so d_pruner_lambda 1 weighs a typical weight's general importance like its importance
    to the domain, in any model. Scores of different matrices stay losses and can be compared.
    """

    name: ClassVar[str] = "d-pruner"
    summary: ClassVar[str] = (
        "Cost of removal on a domain's text, plus the cost on general text as a regulariser."
    )
    paper: ClassVar[str | None] = "2405.06275"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"gradient.mean", "gradient.square", "domain.gradient.mean", "domain.gradient.square"}
    )

    d_pruner_lambda: float = parameter(
        1.0, "D-Pruner: weight of what a weight is worth on general text.", ge=0.0, le=1e6
    )

    d_pruner_first_order: bool = parameter(
        False, "D-Pruner: whether the first-order terms of the paper count; noise at trained weights."
    )

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """float32 [out, in]. The gradients of `statistics` are of general text, those of `domain` of the
        domain."""
        first = self.d_pruner_first_order
        general = removal(weight, statistics, "gradient", first).abs_()
        scale = rms(weight)
        changes = weight.to(torch.float32) / scale if scale > 0 else torch.zeros_like(general)
        penalty = general.mul_(changes.square()).mul_(self.d_pruner_lambda)
        return removal(weight, statistics, "domain.gradient", first).sub_(penalty).abs_()


def rms(weight: Tensor) -> float:
    """Root mean square of a weight's elements. In float64, some rows at a time: squares of small or large
    ones leave the range of float32."""
    total = 0.0
    for start in range(0, weight.shape[0], 256):
        total += float(weight[start : start + 256].to(torch.float64).square().sum())
    return math.sqrt(total / weight.numel())


def removal(weight: Tensor, statistics: SiteStatistics | None, kind: str, first: bool) -> Tensor:
    """g w - E[g^2] w^2 / 2, float32 [out, in]: what the loss falls by, to second order, when w becomes 0;
    without the term g w unless ``first``."""
    dense, mean = weight.to(torch.float32), needed(statistics, f"{kind}.mean", weight.device)
    curved = dense.square() * needed(statistics, f"{kind}.square", weight.device) / -2
    return curved.add_(dense * mean) if first else curved
