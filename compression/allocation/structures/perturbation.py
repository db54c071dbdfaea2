"""Bonsai: what the losses of random sub-models say of every unit, from forward passes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compression.allocation.regression import unit_worth
from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, Units, cheapest, check_budget
from compression.anatomy.structures import Group
from compression.criteria.units import best
from compression.parameters import parameter
from compression.seeds import site_generator


@structure_allocations.register
@dataclass(frozen=True)
class Perturbation:
    """Round after round a fraction p of the units goes, those without which the loss rises least for what
    they cost. In a round only the units of each pool with the lowest scores of the criterion may go, twice as
    many as go (a pool are the neurons of a layer or its heads; the heads of all layers, where p is less than
    one of a layer's). Sub-models lack some of them, drawn by their scores, and each second one what the one
    before did not; `unit_worth` reads the worth of each from the losses (Dery et al. 2024, Bonsai: priors,
    masks with complements, ridge regression, iterations; fractions and numbers are those of its code).

    Otherwise than in the paper: the loss is regressed, not the perplexity; how many a sub-model lacks of a
    pool is drawn too, so that layers can be told apart; the regression is drawn towards the scores; worth is
    divided by cost; scores are measured once, on the dense model.
    """

    name: ClassVar[str] = "perturbation"
    summary: ClassVar[str] = "Units by what random sub-models lose without them; forward passes alone."
    paper: ClassVar[str | None] = "2402.05406"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.loss", "unit.scores"})

    submodel_fraction: float = parameter(
        0.05, "Perturbation: the part of all units, by their cost, that goes in a round.", gt=0.0, le=0.5
    )
    submodel_count: int = parameter(200, "Perturbation: sub-models of a round.", ge=4, le=100_000)
    submodel_sequences: int = parameter(
        8, "Perturbation: calibration sequences that each is measured on (the paper: 32).", ge=1, le=65536
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        return {name: len(units) for name, units in self.select(evidence, budget).items()}

    def select(self, evidence: UnitEvidence, budget: int) -> Units:
        """See `UnitSelection`: the units that went last, in numbers that the groups may have."""
        check_budget(evidence, budget)
        state = _State(evidence)
        goal = int(state.costs.sum()) - budget
        rounds = math.ceil(goal / (self.submodel_fraction * int(state.costs.sum())))
        for number in range(rounds):
            upto = goal * (number + 1) / rounds
            if not self._round(evidence, state, number, rounds, upto):
                break
        order = state.finished(rounds)
        ranks = {group.name: order[state.places[group.name]] for group in evidence.groups}
        sorted_ranks = {name: one.sort().values for name, one in ranks.items()}

        def price(group: Group, before: int, after: int) -> float:
            return float(sorted_ranks[group.name][group.count - before : group.count - after].mean())

        keep = cheapest(evidence, budget, price)
        return {name: best(one, keep[name]) for name, one in ranks.items()}

    def _round(self, evidence: UnitEvidence, state: _State, number: int, rounds: int, upto: float) -> bool:
        """Takes units until what went costs `upto`; False if none may go."""
        pools = state.pools(2 * self.submodel_fraction)
        units = torch.cat(pools) if pools else torch.zeros(0, dtype=torch.int64)
        if not len(units):
            return False
        whole = evidence.loss(state.kept(state.alive), self.submodel_sequences)
        absent = torch.zeros(self.submodel_count, len(state.costs), dtype=torch.bool)
        for place in range(self.submodel_count):
            if place % 2:
                absent[place, units] = ~absent[place - 1, units]
                continue
            dice = site_generator(evidence.seed, f"submodel.{number}.{place}")
            for pool in pools:
                absent[place, _drawn(pool, state.prior, dice)] = True
        losses = []
        for place, gone in enumerate(absent):
            losses.append(evidence.loss(state.kept(state.alive & ~gone), self.submodel_sequences))
            evidence.progress(number * self.submodel_count + place + 1, rounds * self.submodel_count)
        places = [torch.isin(units, pool).nonzero().flatten() for pool in pools]
        rises = _finite(torch.tensor(losses, dtype=torch.float64)) - (whole if math.isfinite(whole) else 0.0)
        worth = unit_worth(absent[:, units].to(torch.float64), rises, state.prior[units], places)
        state.remove(units, worth / state.costs[units], number, upto)
        return True


def _drawn(pool: Tensor, prior: Tensor, dice: torch.Generator) -> Tensor:
    """Some units of a pool, as many as the generator says, without replacement with chances in proportion to
    how far their scores are below the highest (Efraimidis and Spirakis 2006)."""
    count = int(torch.randint(len(pool) + 1, (1,), generator=dice))
    chances = prior[pool].max() - prior[pool]
    chances = chances + (float(chances.mean()) * 1e-2 or 1.0)
    keys = torch.rand(len(pool), generator=dice, dtype=torch.float64).clamp_min(1e-300).log() / chances
    return pool[keys.argsort(descending=True, stable=True)[:count]]


def _finite(losses: Tensor) -> Tensor:
    """Losses with the highest finite one in the place of those that are infinite (0, if all are)."""
    finite = torch.isfinite(losses)
    highest = losses[finite].max() if bool(finite.any()) else torch.zeros((), dtype=losses.dtype)
    return torch.where(finite, losses, highest)


class _State:
    """All units of the model, one after another: `costs` and `prior` float64, `alive` bool; `places` are
    their indices by group."""

    def __init__(self, evidence: UnitEvidence) -> None:
        self._groups = evidence.groups
        self._least = [evidence.steps(group)[0] for group in evidence.groups]
        counts = torch.tensor([group.count for group in evidence.groups])
        ends = counts.cumsum(0).tolist()
        self.places = {
            group.name: torch.arange(end - group.count, end)
            for group, end in zip(evidence.groups, ends, strict=True)
        }
        self.group = torch.arange(len(counts)).repeat_interleave(counts)
        prior = [evidence.scores(group).to("cpu", torch.float64) for group in evidence.groups]
        # Scores of layers side by side: each in units of its layer's mean.
        self.prior = torch.cat([one / (float(one.mean()) or 1.0) for one in prior])
        each = [evidence.spent(group, group.count) / group.count for group in evidence.groups]
        costs = torch.tensor(each, dtype=torch.float64)
        self.costs = costs.repeat_interleave(counts)
        self.alive = torch.ones(len(self.costs), dtype=torch.bool)
        self._order = torch.zeros(len(self.costs), dtype=torch.float64)
        self._gone = 0.0

    def kept(self, stays: Tensor) -> Units:
        """The units of each group that stay."""
        return {name: stays[places].nonzero().flatten() for name, places in self.places.items()}

    def pools(self, fraction: float) -> list[Tensor]:
        """Of every pool the part of its units (two at least) with the lowest scores that may go."""
        joined: dict[str, list[Tensor]] = {}
        for group in self._groups:
            alone = group.kind == "neuron" or group.count * fraction >= 2
            joined.setdefault(group.name if alone else group.kind, []).append(self.places[group.name])
        found = [self._lowest(torch.cat(places), fraction) for places in joined.values()]
        return [pool for pool in found if len(pool)]

    def _lowest(self, pool: Tensor, fraction: float) -> Tensor:
        pool = pool[self.alive[pool]]
        wanted = max(2, math.ceil(fraction * len(pool)))
        spare = {
            number: int(self.alive[self.places[self._groups[number].name]].sum()) - self._least[number]
            for number in sorted(set(self.group[pool].tolist()))
        }
        chosen: list[int] = []
        for unit in pool[self.prior[pool].argsort(stable=True)].tolist():
            number = int(self.group[unit])
            if len(chosen) < wanted and spare[number] > 0:
                spare[number] -= 1
                chosen.append(unit)
        return torch.tensor(sorted(chosen), dtype=torch.int64)

    def remove(self, units: Tensor, prices: Tensor, number: int, upto: float) -> None:
        """Takes units in the order of their prices until all that went costs `upto`."""
        for place, at in enumerate(prices.argsort(stable=True).tolist()):
            if self._gone >= upto:
                return
            unit = int(units[at])
            self.alive[unit] = False
            self._order[unit] = number + place / len(units)
            self._gone += float(self.costs[unit])

    def finished(self, rounds: int) -> Tensor:
        """When each unit went, those that are still there last, by their scores: float64 [units]."""
        left = self.alive.nonzero().flatten()
        ranks = self.prior[left].argsort(stable=True).argsort(stable=True)
        self._order[left] = rounds + 1 + ranks.to(torch.float64) / max(1, len(left))
        return self._order
