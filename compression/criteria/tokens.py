"""What a criterion of tokens is given: how often they occur, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The rows of a vocabulary. `counts` says how often each occurs in the calibration texts, int64 [rows]
    (None:
    nothing was counted); `norms` gives the 2-norms of the rows of the embedding table, float64 [rows]."""

    rows: int
    counts: Tensor | None
    norms: Callable[[], Tensor]


class VocabularyCriterion(Protocol):
    """Scores of tokens; the smallest go first."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def score(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        """What each row is worth: float64 [rows], finite. `generator` is a CPU generator of the job's
        seed."""
        ...
