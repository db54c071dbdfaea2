"""What an update of the weight that reads units is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from compression.anatomy.structures import Kind
from compression.criteria.units import Cluster, Units


@dataclass(frozen=True)
class StructureTask:
    """One weight that loses inputs. `dense`: float32 [out, in]; `kept`: int64, the inputs that stay,
    ascending; `means`: float64 [in] and `hessian`: float32 [in, in], the sum of x x^T, of its inputs x on the
    calibration data (None if no update asks for it); `site`: its name, for messages; `has_bias`: whether its
    outputs have a bias."""

    dense: Tensor
    kept: Tensor
    site: str
    has_bias: bool
    means: Tensor | None = None
    hessian: Tensor | None = None


@dataclass(frozen=True)
class StructureCut:
    """What became of it so far. `weight`: float32 [out, kept]; `bias`: float32 [out] to be added to the bias,
    or None."""

    weight: Tensor
    bias: Tensor | None = None


@runtime_checkable
class StructureUpdate(Protocol):
    """Changes the weight that reads the units that stay, or its bias; `kinds` are those of the units. Updates
    are chained; see `UNIT_NEEDS`, and "hessian"."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]
    kinds: ClassVar[frozenset[Kind]]

    def apply(self, task: StructureTask, cut: StructureCut) -> StructureCut:
        """The cut after this update. Nothing that comes in is changed in place."""
        ...


@runtime_checkable
class ExpertUpdate(Protocol):
    """Changes the experts that stay: their tensors, and their rows of the router, become sums of what experts
    of the dense layer had. Updates are chained."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]
    kinds: ClassVar[frozenset[Kind]]

    def mix(self, units: Units, clusters: Sequence[Cluster], mixing: Tensor) -> Tensor:
        """How much of every expert goes into each that stays, ascending: float64 [kept, units]; `mixing` is
        what it was so far, which is not changed in place."""
        ...
