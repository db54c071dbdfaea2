"""Exact OBS: one weight after another, each time the one whose loss is least once the others have adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.granularity.base import ZERO_SCORE, zeros_first
from compression.granularity.unstructured import unstructured_mask
from compression.parameters import parameter
from compression.updates import updates
from compression.updates.base import Cut, Task
from compression.updates.quadratic import WeightTooWide, damping_parameter, hessian_of

CHUNK_BYTES = 512 << 20


@updates.register
@dataclass(frozen=True)
class ExactObs:
    """Greedy optimal brain surgeon in every row with the row's own inverse (Hassibi & Stork 1992; Frantar
    et al. 2022, Optimal Brain Compression, algorithm 1).

    Removing weight p of a row costs w_p^2 / [H_S^-1]_pp and changes the others by -w_p [H_S^-1]_:p /
    [H_S^-1]_pp; S is what the row still has. With comparison "layer" every row is first emptied to learn
    its losses, the losses of all rows compete for the budget, and the row is then pruned to its share.
    Costs out * in^3: for small layers. H gets the damping, dead inputs cost nothing to remove. Blocks of
    weights are not supported.
    """

    name: ClassVar[str] = "exact-obs"
    summary: ClassVar[str] = "Removes weights one by one, the rest adapting each time. For small layers."
    paper: ClassVar[str | None] = "2208.11580"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    starts_over: ClassVar[bool] = False

    damping: float = damping_parameter()
    largest_inputs: int = parameter(
        2048, "Inputs up to which a system of equations is solved for every output.", ge=1, le=65536
    )

    def apply(self, task: Task, cut: Cut) -> Cut:
        """A new weight under a new mask. WeightTooWide beyond `largest_inputs`; ValueError for blocks."""
        inputs = task.dense.shape[1]
        if inputs > self.largest_inputs:
            raise WeightTooWide(
                f"{task.site} has {inputs} inputs, exact-obs takes at most {self.largest_inputs} (option "
                "largest_inputs): use the update sparsegpt or alps"
            )
        if task.rule.pattern.kind == "block":
            raise ValueError("exact-obs removes single weights or n:m, not blocks")
        hessian = hessian_of(task).to(torch.float64)
        dead = hessian.diagonal() == 0
        hessian.diagonal().add_(self.damping * hessian.diagonal().mean())
        hessian.diagonal().masked_fill_(hessian.diagonal() == 0, 1.0)
        inverse = torch.linalg.inv(hessian)
        group = task.rule.pattern.group if task.rule.pattern.kind == "n:m" else 0
        keep = task.rule.pattern.keep
        dense = task.dense.to(torch.float64)
        if group:
            counts = torch.full((dense.shape[0],), inputs // group * (group - keep))
        else:
            losses = _in_chunks(dense, inverse, dead, torch.full((dense.shape[0],), inputs), 0, 0)[1]
            scores = zeros_first(losses.to(torch.float32), task.dense)
            # The order of a row is its own: its losses must not fall, so that a threshold cuts a beginning
            # off.
            mask = unstructured_mask(scores, task.rule.remove, task.rule.comparison)
            counts = (~mask).sum(1).cpu()
        weight, order = _in_chunks(dense, inverse, dead, counts, group, group - keep)
        mask = torch.isinf(order)
        return Cut(weight.masked_fill(~mask, 0.0).to(torch.float32), mask, cut.bias)


def _in_chunks(
    dense: Tensor, inverse: Tensor, dead: Tensor, counts: Tensor, group: int, most: int
) -> tuple[Tensor, Tensor]:
    """`_remove` for a few rows at a time, so that their inverses fit into memory."""
    step = max(1, CHUNK_BYTES // (inverse.numel() * 8))
    parts = [
        _remove(dense[at : at + step], inverse, dead, counts[at : at + step].to(dense.device), group, most)
        for at in range(0, dense.shape[0], step)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _remove(
    dense: Tensor, inverse: Tensor, dead: Tensor, counts: Tensor, group: int, most: int
) -> tuple[Tensor, Tensor]:
    """Remove `counts[r]` weights of each row, at most `most` of every `group` (0: no groups).

    Gives the weights and, at removed places, the loss at which they went (made to rise along the row, 0 for
    weights that were zero), infinity elsewhere: both float64 [rows, in].
    """
    rows = dense.shape[0]
    weight, own = dense.clone(), inverse.expand(rows, -1, -1).clone()
    losses = torch.full_like(dense, torch.inf)
    reached = torch.zeros(rows, dtype=torch.float64, device=dense.device)
    places = torch.arange(rows, device=dense.device)
    zero = dense == 0
    for done in range(int(counts.max()) if rows else 0):
        diagonal = own.diagonal(dim1=1, dim2=2)
        cost = weight.square() / diagonal.clamp_min(torch.finfo(torch.float64).tiny)
        cost = cost.masked_fill(dead, 0.0).masked_fill(zero, ZERO_SCORE)
        gone = ~torch.isinf(losses)
        cost = cost.masked_fill(gone, torch.inf)
        if group:
            full = gone.reshape(rows, -1, group).sum(-1) >= most
            cost = cost.masked_fill(full.repeat_interleave(group, 1), torch.inf)
        value, chosen = cost.min(1)
        active = counts > done
        reached = torch.where(active, torch.maximum(reached, value.clamp_min(0.0)), reached)
        losses[places, chosen] = torch.where(active, reached, losses[places, chosen])
        column = own[places, :, chosen]
        pivot = column[places, chosen].clamp_min(torch.finfo(torch.float64).tiny)
        moves = active & ~dead[chosen]
        scale = torch.where(moves, weight[places, chosen] / pivot, 0.0)
        weight = weight - scale.unsqueeze(1) * column
        share = torch.where(moves, 1 / pivot, 0.0)
        own -= (share.unsqueeze(1) * column).unsqueeze(2) * column.unsqueeze(1)
        weight[places, chosen] = torch.where(active, 0.0, weight[places, chosen])
    return weight, losses
