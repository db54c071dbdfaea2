"""What units own of tensors in training: their norms, and factors of their own for their slices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.graphs.allocation import Chosen
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy

ROLES = frozenset({"producer", "consumer", "follower"})


@dataclass(frozen=True)
class Slice:
    """An axis of an initializer: by place, the number of the unit that owns it, int64 [size], `none` where
    no unit does."""

    initializer: str
    axis: int
    owners: Tensor


class Slices:
    """The slices that units own of some initializers, with units numbered over all groups in order.

    `roles`: which sites count. What makes a unit and follows it (its "zero-invariant group" in the words of
    Chen et al. 2021, arXiv:2107.07467) gives zero where all of it is zero; its readers do not matter then.
    """

    def __init__(self, anatomy: Anatomy, names: Collection[str], roles: Collection[str] = ROLES) -> None:
        self.groups = {group.name: group.units for group in anatomy.groups}
        self.units = sum(self.groups.values())
        self.first: dict[str, int] = {}
        found: dict[tuple[str, int], np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        count = 0
        for group in anatomy.groups:
            self.first[group.name] = count
            for site in group.sites:
                if site.initializer not in names or site.role not in roles:
                    continue
                size = anatomy.graph.initializers[site.initializer].shape[site.axis]
                owners = found.setdefault((site.initializer, site.axis), np.full(size, -1, dtype=np.int64))
                owners[site.places] = np.arange(count, count + group.units)[:, None]
            count += group.units
        self.slices = [
            Slice(name, axis, torch.from_numpy(np.where(owners < 0, self.units, owners)))
            for (name, axis), owners in found.items()
        ]

    def numbers(self, units: Mapping[str, Collection[int]]) -> Tensor:
        """Which units these are; bool [units]."""
        chosen = torch.zeros(self.units, dtype=torch.bool)
        for name, places in units.items():
            chosen[[self.first[name] + place for place in places]] = True
        return chosen

    def by_group(self, values: Tensor) -> dict[str, Scores]:
        """Values [units] as float64 [units of the group] by group."""
        plain = values.detach().double().cpu().numpy()
        return {name: plain[at : at + self.groups[name]].copy() for name, at in self.first.items()}

    def chosen(self, units: Tensor) -> Chosen:
        """Units, bool [units], by the names of their groups."""
        found = {
            name: torch.nonzero(units[at : at + self.groups[name]]).flatten().tolist()
            for name, at in self.first.items()
        }
        return {name: places for name, places in found.items() if places}

    def sums(
        self, tensors: Mapping[str, Tensor], measure: Callable[[Tensor], Tensor] = torch.square
    ) -> Tensor:
        """By unit, the sum of `measure` (element by element) over its slices; float64 [units]."""
        total = torch.zeros(self.units + 1, dtype=torch.float64)
        for one in self.slices:
            if one.initializer in tensors:
                value = measure(tensors[one.initializer].detach().double())
                rest = [axis for axis in range(value.ndim) if axis != one.axis]
                total.index_add_(0, one.owners, value.sum(rest) if rest else value)
        return total[:-1]

    def counts(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """By unit, how many elements it owns; float64 [units]."""
        return self.sums(tensors, torch.ones_like)

    def factors(self, one: Slice, values: Tensor, otherwise: float, like: Tensor) -> Tensor:
        """Values [units] laid along the axis of a slice, `otherwise` where no unit is; they broadcast against
        the tensor `like`."""
        spread = torch.cat([values.to(like.dtype), torch.full((1,), otherwise, dtype=like.dtype)])[one.owners]
        shape = [1] * like.ndim
        shape[one.axis] = -1
        return spread.reshape(shape)

    def kept(self, one: Slice, gone: Tensor) -> Tensor:
        """By place along the axis of a slice, whether it stays without some units, bool [units]."""
        return ~torch.cat([gone, torch.zeros(1, dtype=torch.bool)])[one.owners]

    def pull(self, masters: Mapping[str, Tensor], strengths: Tensor) -> None:
        """Add strength [units] times the weight to the gradients of all slices: the gradient of half the sum
        of strength * |slice|^2. Tensors that the loss did not reach get a gradient, too."""
        for one in self.slices:
            master = masters.get(one.initializer)
            if master is not None:
                gradient = self.factors(one, strengths, 0.0, master) * master.detach()
                master.grad = gradient if master.grad is None else master.grad + gradient

    def zero(self, tensors: Mapping[str, Tensor], units: Tensor) -> None:
        """Make the slices of units, bool [units], exactly zero."""
        for one in self.slices:
            if one.initializer in tensors:
                tensor = tensors[one.initializer]
                gone = self.factors(one, units.to(torch.float32), 0.0, torch.ones((1,) * tensor.ndim)) > 0
                tensor.masked_fill_(gone, 0.0)
