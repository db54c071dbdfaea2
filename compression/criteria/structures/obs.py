"""OBS for units: what the layer's output loses with a unit when everything that stays adapts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.units import PARTS, Units
from compression.parameters import parameter
from compression.updates.quadratic import DAMPING_STEPS, HessianSingular, damping_parameter, precision


@structure_criteria.register
@dataclass(frozen=True)
class Obs:
    """Units go one by one, each time the one with the smallest tr(W_u (P_uu)^-1 W_u^T), P = (X^T X + d I)^-1
    and W being the inverse and the weight as the earlier removals left them: W - W_u P_uu^-1 P_u:, P - P_:u
    P_uu^-1 P_u: (Kurtic et al. 2023, ZipLM, equations 2 and 3). The score of a unit is the sum of these
    errors up to its removal, so it says what a layer loses that keeps only units above it. `obs_units` go at
    a time. The weights that it makes on the way are those of the update least-squares."""

    name: ClassVar[str] = "obs"
    summary: ClassVar[str] = (
        "The error of the layer's output without the unit when the rest adapts, unit after unit."
    )
    paper: ClassVar[str | None] = "2302.04089"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    kinds = PARTS
    cumulative: ClassVar[bool] = True

    damping: float = damping_parameter()
    obs_units: int = parameter(
        1, "OBS: so many units go at a time; more are quicker and less exact.", ge=1, le=1024
    )

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """float64 [units]. ValueError without the products of the inputs; HessianSingular if they have no
        inverse."""
        if units.hessian is None:
            raise ValueError("OBS scores need the products of the inputs")
        state = _Elimination(units, self.damping)
        scores = torch.zeros(units.count, dtype=torch.float64)
        lost = 0.0
        left = units.count
        while left:
            errors = state.errors()
            gone = errors.sort(stable=True).indices[: min(self.obs_units, left)].tolist()
            for unit in gone:
                # Of several that go together, each costs what it does after those before it.
                lost += state.remove(unit)
                scores[unit] = lost
            left -= len(gone)
        return scores


class _Elimination:
    """The inverse P float [in, in] and the weight W [out, in] while units leave."""

    def __init__(self, units: Units, damping: float) -> None:
        assert units.hessian is not None
        self.count = units.count
        weight = units.output
        self.size = weight.shape[1]
        kind = precision(weight.shape[0] * self.size)
        self.weight = weight.reshape(-1, weight.shape[2]).T.to(kind).clone()
        self.inverse = _inverse(units.hessian.to(weight.device, kind), damping, units.name)
        self.alive = torch.ones(self.count, dtype=torch.bool, device=weight.device)

    def errors(self) -> Tensor:
        """The error of each unit's removal: float64 [units], infinite where it is gone."""
        columns = self.weight.T.reshape(self.count, self.size, -1)
        if self.size == 1:
            own = self.inverse.diagonal().masked_fill(~self.alive, 1.0)
            found = columns[:, 0].square().sum(1) / own
        else:
            blocks = torch.stack([self._block(unit) for unit in range(self.count)])
            found = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
        return found.to("cpu", torch.float64).clamp_min(0).masked_fill(~self.alive.cpu(), float("inf"))

    def _block(self, unit: int) -> Tensor:
        if not bool(self.alive[unit]):
            return torch.eye(self.size, dtype=self.inverse.dtype, device=self.inverse.device)
        at = slice(unit * self.size, (unit + 1) * self.size)
        return self.inverse[at, at]

    def remove(self, unit: int) -> float:
        """Takes a unit away; what that costs."""
        at = slice(unit * self.size, (unit + 1) * self.size)
        rows, columns = self.inverse[at].clone(), self.weight[:, at].clone()
        factors = torch.linalg.solve(self._block(unit), rows)
        cost = float((columns @ torch.linalg.solve(self._block(unit), columns.T)).diagonal().sum())
        self.weight -= columns @ factors
        self.inverse -= rows.T @ factors
        for tensor in (self.weight, self.inverse):
            tensor[:, at] = 0
        self.inverse[at] = 0
        self.alive[unit] = False
        return max(0.0, cost)


def _inverse(hessian: Tensor, damping: float, name: str) -> Tensor:
    plain = hessian.diagonal().clone()
    amount = damping * float(plain.mean()) or 1.0
    for step in DAMPING_STEPS:
        hessian = hessian.clone()
        hessian.diagonal().copy_(plain + step * amount)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) == 0 and bool(torch.isfinite(factor).all()):
            return torch.cholesky_inverse(factor)
    raise HessianSingular(
        f"the products of the inputs that are the units of {name} have no inverse even with a damping of "
        f"{damping * DAMPING_STEPS[-1]:g}: use more calibration data or a larger damping"
    )
