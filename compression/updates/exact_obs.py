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

# About what a cache holds: each step goes over all inverses of a chunk.
CHUNK_BYTES = 32 << 20
# Steps after which what is gone is left out: at least so many, and a share of the columns.
STEPS, SHARE = 16, 8


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
    """`_remove` for a few rows at a time, so that their inverses stay near the processor."""
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
    rows, inputs = dense.shape
    weight, losses = dense.clone(), torch.full_like(dense, torch.inf)
    columns = torch.arange(inputs, device=dense.device).expand(rows, -1)
    everyone = torch.arange(rows, device=dense.device)
    groups = torch.zeros(rows, inputs // group, dtype=torch.int64, device=dense.device) if group else None
    work = _Rows(everyone, columns, dense.clone(), inverse.expand(rows, -1, -1).clone(), groups)
    done = 0
    work.keep(counts > 0, losses)
    while work.rows.numel():
        steps = min(max(STEPS, work.columns.shape[1] // SHARE), int(counts[work.rows].min()) - done)
        for _ in range(steps):
            work.step(losses, dead, group, most)
        done += steps
        weight[work.rows.unsqueeze(1), work.columns] = work.weight
        work.keep(counts[work.rows] > done, losses)
    return weight, losses


@dataclass
class _Rows:
    """Rows at work: the number of each, the columns that it has [rows, m], their weights [rows, m] and the
    inverse of their Hessian [rows, m, m]; how many of each group have gone [all rows, groups]; the highest
    loss so far is in `reached`. A column that has gone since the last `keep` has weight 0 and loss below
    infinity."""

    rows: Tensor
    columns: Tensor
    weight: Tensor
    inverse: Tensor
    groups: Tensor | None

    def __post_init__(self) -> None:
        self.reached = torch.zeros(self.rows.numel(), dtype=torch.float64, device=self.rows.device)
        self.zero = self.weight == 0
        self.gone = torch.zeros_like(self.zero)

    def step(self, losses: Tensor, dead: Tensor, group: int, most: int) -> None:
        """Every row loses the weight that costs it least, and the others adapt."""
        tiny = torch.finfo(torch.float64).tiny
        unused = dead[self.columns]
        cost = self.weight.square() / self.inverse.diagonal(dim1=1, dim2=2).clamp_min(tiny)
        cost = cost.masked_fill(unused, 0.0).masked_fill(self.zero, ZERO_SCORE)
        cost = cost.masked_fill(self.gone, torch.inf)
        if self.groups is not None:
            full = self.groups[self.rows] >= most
            cost = cost.masked_fill(full.gather(1, self.columns // group), torch.inf)
        value, at = cost.min(1, keepdim=True)
        place = self.columns.gather(1, at)
        self.reached = torch.maximum(self.reached, value[:, 0].clamp_min(0.0))
        losses[self.rows, place[:, 0]] = self.reached
        if self.groups is not None:
            self.groups[self.rows, place[:, 0] // group] += 1
        column = self.inverse.gather(2, at.unsqueeze(1).expand(-1, self.inverse.shape[1], 1))
        share = (1 / column[:, :, 0].gather(1, at).clamp_min(tiny)).masked_fill(unused.gather(1, at), 0.0)
        scaled = column * share.unsqueeze(2)
        self.weight -= self.weight.gather(1, at) * scaled[:, :, 0]
        self.inverse.baddbmm_(scaled, column.transpose(1, 2), alpha=-1.0)
        self.weight.scatter_(1, at, 0.0)
        self.gone.scatter_(1, at, True)

    def keep(self, which: Tensor, losses: Tensor) -> None:
        """Go on with these rows alone, and with the columns that they still have."""
        has = torch.isinf(losses[self.rows[which].unsqueeze(1), self.columns[which]])
        # Every row has lost as many.
        width = int(has[0].sum()) if has.shape[0] else 0
        left = has.nonzero()[:, 1].reshape(has.shape[0], width)
        wide = left.unsqueeze(2).expand(-1, -1, self.inverse.shape[2])
        inner = self.inverse[which].gather(1, wide)
        self.inverse = inner.gather(2, left.unsqueeze(1).expand(-1, left.shape[1], -1))
        self.columns = self.columns[which].gather(1, left)
        self.weight = self.weight[which].gather(1, left)
        self.zero = self.zero[which].gather(1, left)
        self.gone = torch.zeros_like(self.zero)
        self.rows, self.reached = self.rows[which], self.reached[which]
