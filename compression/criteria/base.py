"""What every criterion is: a pure function on tensors with a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from compression.errors import CompressionError


class ScoresNotFinite(CompressionError):
    """A criterion gave a score that is not a finite number."""

    code = "scores_not_finite"


class ActivationsNotFinite(CompressionError):
    """On the calibration data, what enters a weight is infinite or no number."""

    code = "activations_not_finite"


NEEDS = (
    "activations", "means", "hessian", "magnitudes",
    "gradient.mean", "gradient.absolute", "gradient.square",
    "domain.gradient.mean", "domain.gradient.square",
)  # fmt: skip
"""What a method may ask of the calibration; see `SiteStatistics`."""


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration knows of one weight [out, in] and of its inputs x; only what was asked for is there.

    `column_norms`: float32 [in], the 2-norm of each input over all calibration tokens; `tokens`: how many.
    `means`: float32 [in], the mean of each input; `magnitudes` that of its |x|. `hessian`: float32 [in, in],
    the sum of x x^T over the tokens. `gradients`: float32 [out, in] each, over the calibration sequences:
    "mean" of the gradient g of a sequence's loss, "absolute" the mean of |g|, "square" the mean of g^2.
    `domain`: the same over the sequences of the domain, where there are any; everything else is of the
    general text. With token weights r (mean square 1), sums over tokens weigh each token by r^2.
    """

    column_norms: Tensor
    tokens: int
    means: Tensor | None = None
    hessian: Tensor | None = None
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    domain: Mapping[str, Tensor] = field(default_factory=dict)
    magnitudes: Tensor | None = None

    def with_gradients(
        self, gradients: Mapping[str, Tensor], domain: Mapping[str, Tensor] | None = None
    ) -> SiteStatistics:
        """The same with these gradient statistics."""
        if not gradients and not domain:
            return self
        return replace(self, gradients=gradients, domain=domain or {})

    def need(self, name: str) -> Tensor:
        """A statistic by its name in NEEDS. ValueError if it was not measured."""
        if name.startswith("gradient."):
            value: Tensor | None = self.gradients.get(name.removeprefix("gradient."))
        elif name.startswith("domain.gradient."):
            value = self.domain.get(name.removeprefix("domain.gradient."))
        else:
            value = {
                "activations": self.column_norms,
                "means": self.means,
                "hessian": self.hessian,
                "magnitudes": self.magnitudes,
            }[name]
        if value is None:
            raise ValueError(f"the statistic {name!r} was not measured")
        return value


def check_inputs(statistics: SiteStatistics, site: str) -> SiteStatistics:
    """The statistics themselves; ActivationsNotFinite names the weight and the first input that overflows."""
    finite = torch.isfinite(statistics.column_norms)
    if not bool(finite.all()):
        column = int((~finite).nonzero()[0])
        raise ActivationsNotFinite(
            f"input {column} of {site} is not finite on the calibration data: the model overflows before "
            "it is pruned; check that its checkpoint is sound and of a type that holds its values"
        )
    return statistics


def needed(statistics: SiteStatistics | None, name: str, device: torch.device) -> Tensor:
    """A statistic in float32 on a device. ValueError if there is none."""
    if statistics is None:
        raise ValueError(f"the statistic {name!r} was not measured")
    return statistics.need(name).to(device, torch.float32)


class WeightCriterion(Protocol):
    """Scores of single weights; the smallest go first. One with `by_row` True gives some rows alone the same
    scores as among all rows, and is asked for some at a time."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def score(self, weight: Tensor, statistics: SiteStatistics | None, generator: torch.Generator) -> Tensor:
        """Importance of each weight.

        weight: [out, in], any float dtype, finite; statistics: given when `needs` (of NEEDS) is not empty;
        generator: a CPU generator, seeded for this weight. Returns float32 [out, in], >= 0, finite.
        """
        ...


def check_scores(scores: Tensor, site: str, first_row: int = 0) -> Tensor:
    """The scores themselves, of rows from the `first_row` on; ScoresNotFinite names the weight whose score
    is NaN, infinite or negative."""
    low, high = torch.aminmax(scores)
    if not (float(low) >= 0 and float(high) < float("inf")):
        bad = ~torch.isfinite(scores) | (scores < 0)
        row, column = (int(value) for value in bad.nonzero()[0])
        raise ScoresNotFinite(
            f"the score of {site}[{first_row + row}, {column}] is {float(scores[row, column])}"
        )
    return scores
