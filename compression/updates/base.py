"""What every update is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from compression.criteria.base import SiteStatistics
    from compression.granularity.rule import Rule


@dataclass(frozen=True)
class Task:
    """One weight to prune. `dense`: float32 [out, in], its values before anything was done; `rule`: how masks
    are made from scores; `statistics`: what the calibration knows; `site`: its name, for messages;
    `has_bias`: whether its outputs have a bias that may change.
    """

    dense: Tensor
    rule: Rule
    statistics: SiteStatistics | None
    site: str
    has_bias: bool = False


@dataclass(frozen=True)
class Cut:
    """What became of the weight so far. `weight`: float32 [out, in], exactly zero wherever `mask` (bool
    [out, in], True stays) is False; `bias`: float32 [out] to be added to the bias, or None.
    """

    weight: Tensor
    mask: Tensor
    bias: Tensor | None = None


class Update(Protocol):
    """Changes what stays: the values of weights, the choice of which, or the bias. Updates are chained."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    @property
    def starts_over(self) -> bool:
        """Whether the cut that comes in is not looked at, so that none need be made."""
        ...

    def apply(self, task: Task, cut: Cut) -> Cut:
        """The cut after this update. A mask that comes out obeys `task.rule` like the one that came in.

        Nothing that comes in is changed in place.
        """
        ...
