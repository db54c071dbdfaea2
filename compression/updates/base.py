"""What every update is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from compression.criteria.base import SiteStatistics


class Update(Protocol):
    """Gives the weights that stay their new values."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def apply(self, weight: Tensor, mask: Tensor, statistics: SiteStatistics | None) -> Tensor:
        """weight [out, in], any float dtype; mask bool [out, in], True stays. Returns a new tensor of the
        same

        shape and dtype that is exactly zero wherever the mask is False."""
        ...
