"""Weights as products of two thin ones: ranks that save anything, what a target leaves, what the model then
is. Exact, and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction

from compression.anatomy import count_macs
from compression.anatomy.budget import selected_sites, stated_length, weight_bytes
from compression.anatomy.factors import factor_names, packed_names
from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.varied import RANK
from compression.specification import JobSpecification, quantity

__all__ = ["RANK", "TARGETS", "RankBudget", "Ranks", "rank_budget", "uniform_ranks", "with_ranks"]

TARGETS = ("sparsity", "parameters", "macs", "bytes")
MULTIPLE = "rank_multiple"
ATOMS = "atoms_per_entry"
"""The option that makes `up` sparse: of its `rank` columns, each row has rank / atoms entries. 1: dense."""
SPARSE_TARGETS = ("sparsity", "parameters")

Ranks = Mapping[str, int]
"""By the name of a weight that becomes a product, its rank; other weights stay as they are."""


@dataclass(frozen=True)
class RankBudget:
    """`sites` may become products, each of one of the ranks `steps` (ascending; none where no rank saves
    anything). What is stored of all of them together may be `total` elements at most, of `whole`. `atoms`:
    how many columns of `up` there are to each entry of its rows."""

    sites: tuple[Site, ...]
    steps: Mapping[str, Sequence[int]]
    total: int
    atoms: int = 1

    @property
    def whole(self) -> int:
        """Elements of the dense weights."""
        return sum(site.size for site in self.sites)

    @property
    def least(self) -> int:
        """As few elements as can be stored."""
        return self.stored({name: steps[0] for name, steps in self.steps.items() if steps})

    @property
    def reachable(self) -> bool:
        """Whether something must go, and the smallest ranks fit."""
        return self.least <= self.total < self.whole

    def stored(self, ranks: Ranks) -> int:
        """Elements that are stored of all sites with these ranks."""
        return sum(stored(site.shape, ranks.get(site.name), self.atoms) for site in self.sites)


def stored(shape: tuple[int, int], rank: int | None, atoms: int = 1) -> int:
    """Elements of a weight: rows * columns, or rank * (rows + columns) as a product; if only one of `atoms`
    elements of `up` is stored, rank * (rows / atoms + columns)."""
    rows, columns = shape
    return rows * columns if rank is None else rank * columns + rank // atoms * rows


def saving_ranks(shape: tuple[int, int], multiple: int, atoms: int = 1) -> range:
    """The ranks, multiples of a number (and of `atoms`), with which a weight takes fewer elements than
    before."""
    rows, columns = shape
    step = math.lcm(multiple, atoms)
    return range(step, atoms * (rows * columns - 1) // (rows + atoms * columns) + 1, step)


def atoms_of(specification: JobSpecification) -> int:
    """How many columns of `up` there are to each entry of its rows."""
    return int(specification.options.get(ATOMS, 1))


def mask_bytes(inspection: Inspection, ranks: Ranks, atoms: int) -> int:
    """Bytes that say where the entries of sparse factors are."""
    if atoms == 1:
        return 0
    return sum(site.shape[0] * -(-ranks[site.name] // 8) for site in inspection.sites if site.name in ranks)


def rank_budget(specification: JobSpecification, inspection: Inspection) -> RankBudget:
    """What the weights that no ignore pattern names may take."""
    sites = tuple(selected_sites(specification, inspection))
    multiple = int(specification.options.get(MULTIPLE, 1))
    atoms = atoms_of(specification)
    steps = {site.name: saving_ranks(site.shape, multiple, atoms) for site in sites}
    whole = sum(site.size for site in sites)
    return RankBudget(sites, steps, whole - max(1, _elements_to_go(specification, inspection, whole)), atoms)


def _elements_to_go(specification: JobSpecification, inspection: Inspection, whole: int) -> int:
    """How many elements must go for the target to be met."""
    target = specification.target
    if target.sparsity is not None:
        asked = Decimal(repr(target.sparsity)) * whole
        return int(asked.quantize(Decimal(1), rounding=ROUND_CEILING))
    kind, amount = quantity(target.kind, target.value)
    each, dense, now = 1, inspection.parameters, inspection.parameters
    if target.kind == "macs":
        # Every token multiplies with every element of these weights once.
        each = stated_length(specification, inspection)
        dense = now = count_macs(inspection, each).total
    elif target.kind == "bytes":
        each = ITEM_SIZES[specification.output.dtype or inspection.dtype]
        dense, now = inspection.bytes, weight_bytes(inspection, specification.output.dtype)
    goal = amount * dense if kind == "ratio" else amount
    return math.ceil((now - math.floor(goal)) / each)


def uniform_ranks(budget: RankBudget) -> dict[str, int]:
    """The ranks with which every weight stores the same share of its elements, rounded down to a step (its
    smallest rank, where that is more): the largest share for which all fit. Those that no rank makes smaller
    stay dense. For reachable budgets."""
    shapes = {site.shape: budget.steps[site.name] for site in budget.sites if budget.steps[site.name]}
    shares = sorted({_share(shape, rank, budget.atoms) for shape, steps in shapes.items() for rank in steps})
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        fits = budget.stored(_at(budget, shares[middle])) <= budget.total
        low, high = (middle, high) if fits else (low, middle)
    return _at(budget, shares[low])


def _share(shape: tuple[int, int], rank: int, atoms: int) -> Fraction:
    return Fraction(stored(shape, rank, atoms), stored(shape, None))


def _at(budget: RankBudget, share: Fraction) -> dict[str, int]:
    found: dict[str, int] = {}
    for site in budget.sites:
        steps = budget.steps[site.name]
        if steps:
            # As many steps as fit into the share of the elements.
            fit = math.floor(share * site.size / stored(site.shape, steps[0], budget.atoms))
            found[site.name] = steps[min(max(fit, 1), len(steps)) - 1]
    return found


def with_ranks(inspection: Inspection, ranks: Ranks, atoms: int = 1) -> Inspection:
    """The inspection of a model some of whose weights are products: each has two sites, down and up. If `up`
    is sparse, its site are the entries, and every token is multiplied with the zeros between them too."""
    sites: list[Site] = []
    for site in inspection.sites:
        if site.name not in ranks:
            sites.append(site)
            continue
        (rows, columns), rank = site.shape, ranks[site.name]
        down, up = factor_names(site.name)
        name = up if atoms == 1 else packed_names(site.name)[0]
        share = site.share * atoms
        sites.append(replace(site, name=down, shape=(rank, columns)))
        sites.append(replace(site, name=name, shape=(rows, rank // atoms), share=share))
    prunable = sum(site.size for site in sites)
    saved = inspection.prunable_parameters - prunable
    return replace(
        inspection,
        sites=tuple(sites),
        prunable_parameters=prunable,
        parameters=inspection.parameters - saved,
        bytes=inspection.bytes - saved * ITEM_SIZES[inspection.dtype],
    )
