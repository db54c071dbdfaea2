"""What every criterion is: a pure function on tensors with a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from compression.errors import CompressionError


class ScoresNotFinite(CompressionError):
    """A criterion gave a score that is not a finite number."""

    code = "scores_not_finite"


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration knows of the inputs of one weight [out, in].

    `column_norms`: float32 [in], the 2-norm of each input over all calibration tokens; `tokens`: how many.
    """

    column_norms: Tensor
    tokens: int


class WeightCriterion(Protocol):
    """Scores of single weights; the smallest go first."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """Importance of each weight.

        weight: [out, in], any float dtype, finite; statistics: given when `needs` has "activations";
        generator: a CPU generator, seeded for this weight. Returns float32 [out, in], >= 0, finite.
        """
        ...


class LayerCriterion(Protocol):
    """Distance between what enters a run of layers and what leaves it; the run with the smallest goes
    first.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]

    def distance(self, before: Tensor, after: Tensor) -> float:
        """before, after: [tokens, hidden], the same tokens, any float dtype. Returns a number >= 0."""
        ...


def check_scores(scores: Tensor, site: str) -> Tensor:
    """The scores themselves; ScoresNotFinite names the weight whose score is NaN, infinite or negative."""
    bad = ~torch.isfinite(scores) | (scores < 0)
    if bool(bad.any()):
        row, column = (int(value) for value in bad.nonzero()[0])
        raise ScoresNotFinite(f"the score of {site}[{row}, {column}] is {float(scores[row, column])}")
    return scores
