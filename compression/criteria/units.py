"""What a criterion of structures is given and gives: the units of one kind in one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compression.anatomy.structures import Kind
from compression.criteria.base import ScoresNotFinite

if TYPE_CHECKING:
    # They name errors of this package.
    from compression.expert_use import ExpertUse
    from compression.unit_statistics import UnitStatistics

UNIT_NEEDS = (
    "activations", "means", "variances", "magnitudes", "lengths", "hessian", "gradient.mean",
    "gradient.output", "mask.square", "routing", "expert.norms", "expert.products", "energies",
)  # fmt: skip
"""What a criterion of structures may ask of the calibration: norms of the inputs of all weights, what
`UnitStatistics` has (of hidden channels, `ChannelStatistics`), the sum of x x^T of the inputs x that the
units are, the mean over sequences of the gradient of the loss, or that of the height of the predictions
(`sequence_height`), what `GradientFiles.masks` gives; and what `ExpertUse` has."""

PARTS: frozenset[Kind] = frozenset({"neuron", "head"})
"""The kinds of units that are parts of weights, which weights read."""

EXPERTS: frozenset[Kind] = frozenset({"expert"})

CHANNELS: frozenset[Kind] = frozenset({"hidden"})
"""Channels of the residual stream, which are parts of all layers."""


@dataclass(frozen=True)
class Piece:
    """What units own of one stored tensor. `weight` and `gradient`: float32 [units, size, others]; the others
    are the inputs where units are outputs of the weight, its outputs where they are its inputs (`column`),
    and one for a bias. `norms`: the 2-norms of the inputs that its weights multiply, to be multiplied with
    `weight` ([others] or [units, size, 1]); None for a bias, and where they were not asked for."""

    weight: Tensor
    column: bool = False
    bias: bool = False
    norms: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Units:
    """The units of one kind in one layer, of which `keep` will stay; `statistics` are those of the inputs
    that the units are, `hessian` float32 [in, in] the sum of their products, `masks` float32 [units] the mean
    over sequences of the squared slope of the loss along the unit (None if they were not asked for). Of
    experts, `use` has the statistics and `router`: float32 [units, hidden] the rows that send tokens to
    them; of hidden channels, `energies` and `magnitudes` are those of `ChannelStatistics`."""

    name: str
    count: int
    pieces: Sequence[Piece]
    statistics: UnitStatistics | None = None
    keep: int = 0
    use: ExpertUse | None = None
    router: Tensor | None = None
    hessian: Tensor | None = None
    masks: Tensor | None = None
    energies: Tensor | None = None
    magnitudes: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """The columns that lead out of the units: float32 [units, size, outputs]."""
        return next(piece.weight for piece in self.pieces if piece.column)

    def measured(self) -> UnitStatistics:
        """The statistics. ValueError if nothing was measured."""
        if self.statistics is None:
            raise ValueError("this criterion needs calibration data")
        return self.statistics

    def used(self) -> ExpertUse:
        """The statistics of experts. ValueError if nothing was measured."""
        if self.use is None:
            raise ValueError("this criterion needs calibration data of experts")
        return self.use

    def by_unit(self, values: Tensor) -> Tensor:
        """A value of every input [in] as [units, size]."""
        return values.reshape(self.count, -1)


class StructureCriterion(Protocol):
    """Scores of units; the smallest go first. `kinds` are those of the units that it judges. A criterion that
    judges sets of units gives 1 to those of the best set of `keep` units and 0 to the others."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]
    kinds: ClassVar[frozenset[Kind]]

    def score(self, units: Units, generator: torch.Generator) -> Tensor:
        """Importance of each unit: float64 [units], >= 0, finite. `generator` is a CPU generator, seeded for
        this group."""
        ...


Cluster = tuple[int, list[int]]
"""The unit that stays of a cluster, and all its members, ascending."""


@runtime_checkable
class ClusterCriterion(StructureCriterion, Protocol):
    """A criterion that keeps one unit of each cluster of units that are alike."""

    def clusters(self, units: Units) -> list[Cluster]:
        """`units.keep` clusters. ValueError without statistics."""
        ...


def check_unit_scores(scores: Tensor, name: str) -> Tensor:
    """The scores themselves; ScoresNotFinite names the unit whose score is NaN, infinite or negative."""
    bad = ~torch.isfinite(scores) | (scores < 0)
    if bool(bad.any()):
        unit = int(bad.nonzero()[0])
        raise ScoresNotFinite(f"the score of unit {unit} of {name} is {float(scores[unit])}")
    return scores


def chosen(units: Iterable[int], count: int) -> Tensor:
    """The scores float64 [count] of a set of units: 1 for its units, 0 for the others."""
    return torch.zeros(count, dtype=torch.float64).index_fill_(0, torch.tensor(list(units)), 1.0)


def best(scores: Tensor, keep: int) -> Tensor:
    """The `keep` units with the largest scores, ascending: int64. Of equals, the first stay."""
    order = scores.to("cpu").sort(descending=True, stable=True).indices
    return order[:keep].sort().values
