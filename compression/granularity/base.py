"""What masks have in common: zeros first, exact counts, ties by position."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY

# Zeros are scored below everything, so that removing them comes first: it costs nothing.
ZERO_SCORE = -1.0
# Weights that are looked at together where rows are independent of each other: so few that what is made of
# them stays in the processor's cache.
PIECE = 1 << 18


class Granularity(Protocol):
    """A named way to remove; `pattern` says how a job writes it."""

    name: ClassVar[str]
    summary: ClassVar[str]
    pattern: ClassVar[str]


@dataclass(frozen=True)
class Pattern:
    """A granularity as a job writes it: "unstructured", "layer", "neuron", "head", "neuron+head", "expert",
    "vocabulary", "rank", "n:m" with `keep` of `group` kept, or "block" of `shape` (rows, columns).
    """

    kind: str
    keep: int = 0
    group: int = 0
    shape: tuple[int, int] = (1, 1)


def parse_granularity(text: str) -> Pattern:
    """ "2:4" -> Pattern("n:m", 2, 4); "16x16" -> Pattern("block", shape=(16, 16)); "unstructured",
    "layer", "neuron", "head", "neuron+head", "expert", "vocabulary" and "rank" as they are; ValueError for
    anything else.
    """
    if text in ("unstructured", "layer", *STRUCTURES, VOCABULARY, RANK):
        return Pattern(text)
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", text)
    if match and 1 <= int(match[1]) < int(match[2]) <= 32:
        return Pattern("n:m", int(match[1]), int(match[2]))
    match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,2})", text)
    if match and (int(match[1]), int(match[2])) != (1, 1):
        return Pattern("block", shape=(int(match[1]), int(match[2])))
    raise ValueError(
        f"granularity {text!r} is neither 'unstructured', 'layer', 'neuron', 'head', 'neuron+head', "
        "'expert', 'vocabulary', 'rank', n:m with 1 <= n < m <= 32 nor blocks such as '16x16'"
    )


def row_slices(weight: Tensor) -> list[slice]:
    """Rows of a weight [out, in] in pieces that leave room for copies."""
    step = max(1, PIECE // max(1, weight.shape[1]))
    rows = weight.shape[0]
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def zeros_first(scores: Tensor, weight: Tensor) -> Tensor:
    """Scores float32 [out, in] (>= 0) with those of weights that are already zero set below all others."""
    if int(torch.count_nonzero(weight)) == weight.numel():
        return scores
    return scores.masked_fill(weight == 0, ZERO_SCORE)


def smallest(scores: Tensor, counts: Tensor) -> Tensor:
    """Bool [groups, size]: True at the `counts[g]` smallest scores of each row of [groups, size].

    `counts`: int64 [groups], 0 <= count <= size. Among equal scores the first by position are taken. Exact.
    """
    busy = counts > 0
    if not bool(busy.any()):
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.is_cuda:  # on CUDA, kthvalue is not repeatable
        threshold = scores.sort(dim=1).values.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    else:
        threshold = _thresholds(scores, counts)
    upto = scores <= threshold
    surplus = busy & (upto.sum(1, dtype=torch.int32) > counts)
    if not bool(busy.all()):
        upto &= busy.unsqueeze(1)
    if bool(surplus.any()):
        rows = surplus.nonzero().flatten()
        below = scores[rows] < threshold[rows]
        equal = scores[rows] == threshold[rows]
        missing = counts[rows] - below.sum(1)
        upto[rows] = below | (equal & (equal.cumsum(1) <= missing.unsqueeze(1)))
    return upto


def _thresholds(scores: Tensor, counts: Tensor) -> Tensor:
    """The `counts[g]`-th smallest score of each row (the smallest where that is 0): [groups, 1]. Rows
    mostly share a few counts, and selecting is several times faster than sorting; numpy's selection is
    several times faster than torch's.
    """
    result = torch.empty_like(scores[:, :1])
    for count in torch.unique(counts).tolist():
        rows = (counts == count).nonzero().flatten()
        part = (scores if len(rows) == len(counts) else scores[rows]).numpy()
        place = max(0, count - 1)
        result[rows] = torch.from_numpy(np.partition(part, place, axis=1)[:, place : place + 1].copy())
    return result
