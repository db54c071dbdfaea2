"""SVD-LLM's update: the up factor anew, for the inputs that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compression.low_rank import refitted
from compression.parameters import parameter
from compression.updates.ranks import rank_updates


@rank_updates.register
@dataclass(frozen=True)
class Refit:
    """up = W M down^T (down M down^T)^-1, the least squares of ||(W - up down) X'||_F for M = X' X'^T, where
    X' are the inputs that earlier blocks give with their factors (Wang et al. 2024, SVD-LLM, in
    its first versions; later ones train the factors with LoRA instead).

    Directions come of the dense model's inputs; of X' itself, this up would be the one that there is already.
    """

    name: ClassVar[str] = "refit"
    summary: ClassVar[str] = (
        "Fits the up factor by least squares to the inputs that the compressed earlier blocks give; "
        "directions come of the dense model's (sequential false)."
    )
    paper: ClassVar[str | None] = "2403.07378"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    refit_damping: float = parameter(
        1e-4, "Added to the second moment of these inputs, relative to its mean.", gt=0.0, le=10.0
    )

    def apply(self, weight: Tensor, down: Tensor, up: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """See `RankUpdate`."""
        return down, refitted(weight, down, moment, self.refit_damping)
