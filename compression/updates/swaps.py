"""Single swaps in the rows of a mask, by what they change when all kept weights are solved for again."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.updates.base import Task

LARGEST_SUPPORT = 1024
CANDIDATES = 32
CHUNK_BYTES = 256 << 20
# Changes smaller than this share of a row's error are taken for rounding.
ENOUGH = 1e-5


def swap(task: Task, hessian: Tensor, mask: Tensor, dead: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Up to `rounds` swaps in every row: the weight float32 and the mask bool, both [out, in].

    hessian: float32 [in, in], positive definite but for `dead`, bool [in], inputs that are not swapped. With
    S the kept weights of a row, A = H_SS, w_S the solution on S, g = (W - w) H, u = A^-1 H_Sj and s = H_jj -
    H_jS u, inserting j and removing i changes the error by exactly

    - g_j^2 / s + (w_i - u_i g_j / s)^2 / ([A^-1]_ii + u_i^2 / s),

    the second term being the optimal brain surgeon's cost after the first. All i and the CANDIDATES j with
    the largest g_j^2 / H_jj are compared; for n:m only pairs of one group. Weights that are zero in the dense
    weight do not come in. Rows that keep nothing, everything, or more than LARGEST_SUPPORT weights stay as
    they are.
    """
    weight, result = torch.where(mask, task.dense, 0.0), mask.clone()
    supports = mask.sum(1).cpu()
    target = task.dense @ hessian
    for width in sorted(set(supports.tolist())):
        if rounds == 0 or not 0 < width <= min(LARGEST_SUPPORT, mask.shape[1] - 1):
            continue
        rows = (supports == width).nonzero().flatten()
        for part in rows.split(max(1, CHUNK_BYTES // (12 * width * width))):
            places = part.to(mask.device)
            support = mask[places].sort(dim=1, descending=True, stable=True).indices[:, :width]
            rows_of = _Rows(task, hessian, target[places], support, places, dead)
            for _ in range(rounds):
                if not rows_of.swap():
                    break
            weight[places] = rows_of.weight()
            result[places] = rows_of.mask()
    return weight, result


class _Rows:
    """Some rows with equally many kept weights. `support`: int64 [n, s], their places, in no order;
    `inverse`: float32 [n, s, s], A^-1 in the order of `support`; `values`: float32 [n, s], w_S; `target`: W
    H, [n, in].
    """

    def __init__(
        self, task: Task, hessian: Tensor, target: Tensor, support: Tensor, rows: Tensor, dead: Tensor
    ) -> None:
        self.hessian = hessian
        self.target = target
        self.support = support
        self.barred = (task.dense[rows] == 0) | dead
        self.group = task.rule.pattern.group if task.rule.pattern.kind == "n:m" else 0
        diagonal = hessian.diagonal()
        self.diagonal = torch.where(diagonal > 0, diagonal, 1.0)
        systems = hessian[support.unsqueeze(2), support.unsqueeze(1)]
        systems.diagonal(dim1=1, dim2=2).copy_(self.diagonal[support])
        factors, info = torch.linalg.cholesky_ex(systems)
        self.able = info == 0
        self.inverse = torch.cholesky_inverse(torch.where(self.able[:, None, None], factors, systems * 0 + 1))
        self.energy = (task.dense[rows] * target).sum(1)
        self._solve()

    def _solve(self) -> None:
        right = self.target.gather(1, self.support)
        self.values = torch.bmm(self.inverse, right.unsqueeze(2)).squeeze(2)
        self.error = self.energy - (self.values * right).sum(1)

    def mask(self) -> Tensor:
        """The mask, bool [n, in]."""
        return torch.zeros_like(self.target, dtype=torch.bool).scatter(1, self.support, True)

    def weight(self) -> Tensor:
        """The weight, float32 [n, in]."""
        return torch.zeros_like(self.target).scatter(1, self.support, self.values)

    def swap(self) -> bool:
        """Makes the best swap of every row that has one which pays; whether any row had."""
        gradient = self.target - self.weight() @ self.hessian
        gains = (gradient.square() / self.diagonal).masked_fill_(self.mask() | self.barred, -1.0)
        count = min(CANDIDATES, gains.shape[1])
        gain, into = gains.topk(count, dim=1)
        columns = self.hessian[self.support.unsqueeze(2), into.unsqueeze(1)]
        moved = torch.bmm(self.inverse, columns)
        rest = (self.diagonal[into] - (columns * moved).sum(1)).unsqueeze(1)
        pull = gradient.gather(1, into).unsqueeze(1)
        spread = self.inverse.diagonal(dim1=1, dim2=2).unsqueeze(2) + moved.square() / rest
        change = (self.values.unsqueeze(2) - moved * pull / rest).square() / spread - pull.square() / rest
        usable = (rest > 1e-6 * self.diagonal[into].unsqueeze(1)) & (gain >= 0).unsqueeze(1)
        usable = usable & self.able[:, None, None] & torch.isfinite(change)
        if self.group:
            usable &= self.support.unsqueeze(2) // self.group == into.unsqueeze(1) // self.group
        best, place = torch.where(usable, change, torch.inf).flatten(1).min(1)
        pays = (best < -ENOUGH * self.error.abs()).nonzero().flatten()
        if len(pays) == 0:
            return False
        out, new = place[pays] // count, place[pays] % count
        self._exchange(pays, out, into[pays, new], moved[pays, :, new], rest[pays, 0, new])
        return True

    def _exchange(self, rows: Tensor, out: Tensor, into: Tensor, moved: Tensor, rest: Tensor) -> None:
        """Puts `into` in the place of `out` in A^-1: bordered by the new weight, then without the old one."""
        every = torch.arange(len(rows), device=rows.device)
        border = -moved / rest.unsqueeze(1)
        column = self.inverse[rows, :, out] - moved * border[every, out].unsqueeze(1)
        pivot, edge = column[every, out], border[every, out]
        left = torch.zeros(*self.support.shape, 2, device=rows.device)
        right = torch.zeros(len(self.support), 2, self.support.shape[1], device=rows.device)
        left[rows] = torch.stack([moved, column / pivot.unsqueeze(1)], dim=2)
        right[rows] = torch.stack([border, column], dim=1)
        self.inverse.baddbmm_(left, right, alpha=-1)
        fresh = border - column * (edge / pivot).unsqueeze(1)
        fresh[every, out] = 1 / rest - edge.square() / pivot
        self.inverse[rows, :, out] = fresh
        self.inverse[rows, out, :] = fresh
        self.support[rows, out] = into
        self._solve()
