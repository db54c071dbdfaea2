"""What every allocation is, and the arithmetic that makes each of them exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from compression.densities import Bounds
from compression.errors import TargetUnreachable

if TYPE_CHECKING:
    from torch import Tensor

    from compression.anatomy.inspection import Site
    from compression.criteria.base import SiteStatistics

NEGLIGIBLE = 1e-9
"""The smallest importance that is told apart, relative to the largest."""

ScoreStream = Callable[[], "Iterator[tuple[str, Tensor]]"]
"""Gives, each time it is called, every site with its scores (any shape, float32; below zero: already
zero).
"""

EVIDENCE = ("scores", "weights", "activations", "influence", "divergence")
"""What an allocation may ask for; see `Evidence`."""


class Evidence(Protocol):
    """What is known of the dense model. Everything is measured when it is first asked for.

    `sites` are in the model's order; `bounds` and all counts are in units: single weights, or blocks of them.
    """

    @property
    def sites(self) -> Sequence[Site]: ...

    @property
    def bounds(self) -> Mapping[str, Bounds]: ...

    def units(self, site: str) -> int:
        """Units of a site."""
        ...

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """The criterion's scores of every site's units (any shape, float32; below zero: already zero)."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every site's weight [out, in], as stored."""
        ...

    def activations(self, site: str) -> SiteStatistics:
        """Norms and means of the inputs of a site on the dense model."""
        ...

    def influence(self) -> list[float]:
        """For each layer, 1 - the mean cosine between what enters and what leaves it, on the dense model."""
        ...

    def divergence(self, sparsities: Mapping[int, float], sequences: int) -> float:
        """How far the model whose layers are pruned to these sparsities (others dense) is from the dense
        one, over the first `sequences` calibration sequences; >= 0. Mean KL divergence per token (or
        example) of what the model predicts; for models without a head 1 - the mean cosine of the hidden
        states."""
        ...

    def slope(self, layer: int, direction: int, sequences: int) -> float:
        """Slope of the loss along one random direction in which the sites of one layer move, each by a normal
        vector times the root mean square of its weights; from two forward passes."""
        ...

    def progress(self, done: int, total: int) -> None: ...


class Allocation(Protocol):
    """Gives each site its number of units to remove."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """How many units each site loses; the sum is exactly `remove_total`, every count within its bounds.

        Raises TargetUnreachable when the bounds leave too little, or too much, to remove.
        """
        ...


def check_room(bounds: Mapping[str, Bounds], remove_total: int) -> None:
    """Raises TargetUnreachable if no counts within the bounds sum up to the target."""
    most, least = (sum(getattr(bound, end) for bound in bounds.values()) for end in ("most", "least"))
    if remove_total > most:
        raise TargetUnreachable(
            f"{remove_total} weights are to go, but with options.minimum_density at most {most} may go"
        )
    if remove_total < least:
        raise TargetUnreachable(
            f"{remove_total} weights are to go, but with options.maximum_density at least {least} must go"
        )


Curve = Callable[[float], Mapping[str, float]]
"""Sparsities by site that rise (none falls) with a number from 0 to 1; bounds are applied to what it
gives."""


def fitted(evidence: Evidence, curve: Curve, remove_total: int) -> dict[str, int]:
    """Counts along a curve of sparsities where the total is exact, within bounds.

    Whole numbers by the largest remainder, ties in the order of the sites. Raises TargetUnreachable.
    """
    check_room(evidence.bounds, remove_total)
    sizes = {site.name: evidence.units(site.name) for site in evidence.sites}

    def clipped(step: float) -> dict[str, float]:
        wanted, bounds = curve(step), evidence.bounds
        return {
            name: min(max(wanted[name] * size, float(bounds[name].least)), float(bounds[name].most))
            for name, size in sizes.items()
        }

    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if sum(clipped(middle).values()) > remove_total:
            high = middle
        else:
            low = middle
    return rounded(clipped((low + high) / 2), evidence.bounds, remove_total)


def shifted(evidence: Evidence, wanted: Mapping[str, float], remove_total: int) -> dict[str, int]:
    """Counts as near as possible to wanted sparsities (by site, any real numbers): one number is added to
    all of them until the total is right; what a bound cuts off, the others share.
    """
    low, high = -max(wanted.values()), 1 - min(wanted.values())

    def curve(step: float) -> Mapping[str, float]:
        return {name: value + low + step * (high - low) for name, value in wanted.items()}

    return fitted(evidence, curve, remove_total)


def scaled(
    evidence: Evidence, importance: Mapping[str, float], remove_total: int, floor: float = 0.0
) -> dict[str, int]:
    """Densities floor + c * importance (by site, >= 0), at most 1, with the c that makes the total right.

    What counts less than NEGLIGIBLE of the most important counts as that: it is filled when all else is.
    """
    most = max(importance.values()) or 1.0
    shares = {name: max(value / most, NEGLIGIBLE) for name, value in importance.items()}

    def curve(step: float) -> Mapping[str, float]:
        # From dense to the floor, about evenly in the logarithm of c, which spans orders of magnitude.
        factor = (1 - step) ** 8 / NEGLIGIBLE
        return {name: 1 - min(1.0, floor + factor * share) for name, share in shares.items()}

    return fitted(evidence, curve, remove_total)


def rounded(ideal: Mapping[str, float], bounds: Mapping[str, Bounds], remove_total: int) -> dict[str, int]:
    """Whole numbers next to ideal ones, within bounds, whose sum is exact; see `shifted`."""
    counts = {
        name: min(max(int(value), bounds[name].least), bounds[name].most) for name, value in ideal.items()
    }
    left = remove_total - sum(counts.values())
    step = 1 if left > 0 else -1
    order = sorted(ideal, key=lambda name: -step * (ideal[name] - counts[name]))
    while left:
        moved = False
        for name in order:
            inside = counts[name] < bounds[name].most if step > 0 else counts[name] > bounds[name].least
            if left and inside:
                counts[name] += step
                left -= step
                moved = True
        if not moved:
            raise TargetUnreachable(f"{remove_total} weights cannot go within the bounds of every weight")
    return counts


def by_layer(evidence: Evidence, sparsities: Mapping[int, float]) -> dict[str, float]:
    """Each site's sparsity, that of its layer."""
    return {site.name: sparsities[site.layer] for site in evidence.sites}


def around(values: Mapping[int, float], sparsity: float, reach: float) -> dict[int, float]:
    """Sparsities of layers around a mean: the most important layer gets the least, at most `reach` from the
    mean.

    `values` are importances. Differences are scaled so that the range of sparsities is 2 * reach, then
    centred on `sparsity` (the mapping of OWL: Yin et al. 2024, arXiv 2310.05175, section 3).
    """
    low, high = min(values.values()), max(values.values())
    if high <= low:
        return dict.fromkeys(values, sparsity)
    scaled = {layer: 2 * reach * (value - low) / (high - low) for layer, value in values.items()}
    mean = sum(scaled.values()) / len(scaled)
    return {layer: sparsity - (value - mean) for layer, value in scaled.items()}


def mean_sparsity(evidence: Evidence, remove_total: int) -> float:
    """The target as a fraction of all units."""
    return remove_total / max(1, sum(evidence.units(site.name) for site in evidence.sites))
