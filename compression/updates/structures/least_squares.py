"""Least squares: the weight on the units that stay that gives the layer's output best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria.units import PARTS
from compression.updates.quadratic import DAMPING_STEPS, HessianSingular, damping_parameter
from compression.updates.structures import structure_updates
from compression.updates.units import StructureCut, StructureTask


@structure_updates.register
@dataclass(frozen=True)
class LeastSquares:
    """W' = W_S + W_P H_PS (H_SS + d I)^-1, the minimum of ||X W^T - X_S W'^T||^2 + d ||W' - W_S||^2, with H =
    X^T X, S the inputs that stay, P those that go, and d = damping * mean(diag H): without damping W H_:S
    H_SS^-1, as in OBS for groups (Kurtic et al. 2023, ZipLM) and K-prune (Park et al. 2023). Solved in
    float64."""

    name: ClassVar[str] = "least-squares"
    summary: ClassVar[str] = "Gives the weights that read the units that stay their best values."
    paper: ClassVar[str | None] = "2302.04089"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    kinds = PARTS

    damping: float = damping_parameter()

    def apply(self, task: StructureTask, cut: StructureCut) -> StructureCut:
        """New values float32 [out, kept]. ValueError without the products of the inputs; HessianSingular if
        they cannot be factored."""
        if task.hessian is None:
            raise ValueError("least squares need the products of the inputs")
        exact = task.hessian.to(task.dense.device, torch.float64)
        kept = task.kept.to(exact.device)
        goes = torch.ones(len(exact), dtype=torch.bool, device=exact.device).index_fill_(0, kept, False)
        lost = task.dense[:, goes].to(torch.float64) @ exact[goes][:, kept]
        amount = self.damping * float(exact.diagonal().mean())
        factor = self._factor(exact[kept][:, kept], amount, task.site)
        change = torch.cholesky_solve(lost.T, factor).T
        return StructureCut((task.dense[:, kept].to(torch.float64) + change).to(torch.float32), cut.bias)

    def _factor(self, system: Tensor, amount: float, site: str) -> Tensor:
        plain = system.diagonal().clone()
        dead = plain == 0
        for step in DAMPING_STEPS:
            system.diagonal().copy_(plain + step * amount)
            system.diagonal().masked_fill_(dead & (amount == 0), 1.0)
            factor, info = torch.linalg.cholesky_ex(system)
            found: Tensor = factor
            if int(info) == 0 and bool(torch.isfinite(factor).all()):
                return found
        raise HessianSingular(
            f"the products of the inputs of {site} cannot be factored even with a damping of "
            f"{self.damping * DAMPING_STEPS[-1]:g}: use more calibration data or a larger damping"
        )
