"""How much goes from one weight and what competes with what: turns scores into masks with exact counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression.granularity.base import Pattern, zeros_first
from compression.granularity.blocks import block_mask
from compression.granularity.n_m import n_m_mask
from compression.granularity.unstructured import unstructured_mask


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

    def window(self) -> int:
        """Columns that must be decided together: m of n:m, the width of a block, else 1."""
        return {"n:m": self.pattern.group, "block": self.pattern.shape[1]}.get(self.pattern.kind, 1)
