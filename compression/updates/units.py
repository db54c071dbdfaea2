"""What an update of the weight that reads units is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from compression.anatomy.structures import Kind


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
