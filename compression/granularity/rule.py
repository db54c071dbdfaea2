"""How much goes from one weight and what competes with what: turns scores into masks with exact counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.granularity.base import Pattern, row_slices, smallest, zeros_first
from compression.granularity.blocks import block_mask
from compression.granularity.n_m import n_m_mask
from compression.granularity.unstructured import row_quotas, unstructured_mask


@dataclass(frozen=True)
class Rule:
    """`remove` weights of one site go, by `pattern`; `comparison` says whether rows compete ("layer", "row").

    For n:m, `remove` is what the pattern takes; for blocks it is a multiple of a block's size.
    """

    pattern: Pattern
    remove: int
    comparison: str = "row"

    def mask(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Keep-mask bool [out, in] that removes the smallest scores; weights that are zero go first.

        scores: float32 [out, in], >= 0, finite; weight: [out, in].
        """
        ordered = zeros_first(scores, weight)
        if self.pattern.kind == "n:m":
            return n_m_mask(ordered, self.pattern.keep, self.pattern.group)
        if self.pattern.kind == "block":
            return block_mask(scores.masked_fill(weight == 0, 0.0), self.pattern.shape, self.remove)
        return unstructured_mask(ordered, self.remove, self.comparison)

    @property
    def by_row(self) -> bool:
        """Whether each row is decided alone, but for how many it loses."""
        return self.pattern.kind == "n:m" or (
            self.pattern.kind == "unstructured" and self.comparison == "row"
        )

    def quotas(self, weight: Tensor) -> Tensor | None:
        """Where rows are decided alone: how many weights each loses, int64 [out]; None for n:m."""
        if self.pattern.kind == "n:m":
            return None
        zeros = torch.cat([(weight[part] == 0).sum(1) for part in row_slices(weight)])
        rows, columns = weight.shape
        return row_quotas(self.remove, rows, columns, zeros.cpu()).to(weight.device)

    def rows_mask(self, scores: Tensor, weight: Tensor, quotas: Tensor | None) -> Tensor:
        """`mask` for some rows of a weight, with what `quotas` says of them."""
        if quotas is None:
            return self.mask(scores, weight)
        return ~smallest(zeros_first(scores, weight), quotas)

    def window(self) -> int:
        """Columns that must be decided together: m of n:m, the width of a block, else 1."""
        return {"n:m": self.pattern.group, "block": self.pattern.shape[1]}.get(self.pattern.kind, 1)
