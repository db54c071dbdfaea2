"""What is known of whole experts: who is used, how much, together with whom, and what for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertUse:
    """How the n experts of a layer were used on all real calibration tokens.

    `counts` int64 [n]: tokens sent to each; `together` int64 [n, n]: tokens sent to both (the diagonal holds
    the counts); `weights` float64 [n]: the sum of what the router weighs them with, as the model does;
    `norms` float64 [n]: the sum of that weight times the 2-norm of the expert's output (zeros unless asked
    for). Of a sample of tokens: `logits` float32 [t, n], what the router gives, and `products` float32
    [t, n, n], the inner products of what all experts give for the token. A token takes `top` experts;
    `normalised`: their weights are divided by their sum.
    """

    tokens: int
    counts: Tensor
    together: Tensor
    weights: Tensor
    norms: Tensor
    logits: Tensor
    products: Tensor
    top: int
    normalised: bool

    def routing(self, stays: Tensor) -> tuple[Tensor, Tensor]:
        """The experts int64 [t, k] that every sampled token takes if only those of `stays` (bool [n]) are
        there, and their weights float64 [t, k]."""
        logits = self.logits.to(torch.float64).masked_fill(~stays, float("-inf"))
        best, taken = logits.topk(self.top, dim=1)
        if self.normalised:
            return taken, best.softmax(1)
        return taken, (best - logits.logsumexp(1, keepdim=True)).exp()

    def errors(self, candidates: list[Tensor]) -> list[float]:
        """sum over sampled tokens of ||y - y_S||_2^2 for sets S of experts (bool [n] each), y being what the
        routed experts of the layer give and y_S what they give if only those of S are there."""
        whole, weights = self._dense()
        found = []
        for stays in candidates:
            taken, values = self.routing(stays)
            found.append(self._energy(torch.cat([whole, taken], 1), torch.cat([weights, -values], 1)))
        return found

    def lost(self, stays: Tensor) -> float:
        """The share of the energy of the routed experts' outputs that is lost: `errors` by sum of ||y||^2."""
        energy = self._energy(*self._dense())
        (error,) = self.errors([stays])
        return error / energy if energy > 0 else 0.0

    def _dense(self) -> tuple[Tensor, Tensor]:
        return self.routing(torch.ones(len(self.counts), dtype=torch.bool))

    def _energy(self, taken: Tensor, weights: Tensor) -> float:
        """sum over sampled tokens of ||sum_a w_a f_a||_2^2, f_a being what the a-th of the experts `taken`
        [t, m] gives; one may be there twice."""
        tokens, count = len(taken), len(self.counts)
        pairs = (taken[:, :, None] * count + taken[:, None, :]).flatten(1)
        products = self.products.reshape(tokens, -1).gather(1, pairs).to(torch.float64)
        products = products.reshape(tokens, taken.shape[1], -1)
        return max(0.0, float((weights[:, :, None] * products * weights[:, None, :]).sum()))
