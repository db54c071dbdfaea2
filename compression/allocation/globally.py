"""Global: one threshold for the whole model, with a minimum left in every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.allocation import allocations
from compression.allocation.base import Evidence, ScoreStream, check_room
from compression.densities import Bounds

# The 31 significant bits of a score's key are fixed in this many steps of this many bits, the highest first.
STEP_BITS = 11
STEPS = 3


@allocations.register
class Global:
    """The smallest scores of the whole model go, wherever they are, within the bounds of each site."""

    name = "global"
    summary = (
        "One threshold over all weights: where scores are small, more goes, down to options.minimum_density."
    )
    paper = "2209.14624"
    needs = frozenset({"scores"})

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """Counts below the exact threshold; see `global_counts`."""
        check_room(evidence.bounds, remove_total)
        return global_counts(evidence.bounds, evidence.scores, remove_total)


@dataclass
class _Tally:
    """Of one site: how many keys lie below the prefix under study, and the fewest and most it may lose."""

    least: int
    cap: int
    below: int = 0
    bins: Tensor | None = None

    def upto(self) -> Tensor:
        """Int64 [bins]: how many weights the site would lose if the threshold were the end of each bin."""
        assert self.bins is not None
        return (self.below + self.bins.cumsum(0)).clamp(self.least, self.cap)


def score_keys(scores: Tensor) -> Tensor:
    """Int64 keys in the order of the scores: 0 for weights already zero (scores below 0), else float bits +
    1.

    The bit pattern of a float32 that is not negative grows with its value, so that counting over the bits
    of the pattern finds an order statistic exactly, in a fixed number of passes and without sorting.
    """
    flat = scores.detach().reshape(-1).to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("scores must be finite")
    # Adding zero turns -0.0 into 0.0, whose bits are zero.
    bits = (flat.clamp_min(0.0) + 0.0).view(torch.int32).to(torch.int64) + 1
    return torch.where(flat < 0, torch.zeros_like(bits), bits)


def global_counts(
    bounds: Mapping[str, Bounds], score_stream: ScoreStream, remove_total: int
) -> dict[str, int]:
    """How many of the `remove_total` smallest scores of all sites lie in each, every site within its bounds.

    Exact: the threshold is found by radix selection over the keys of the scores. Weights that tie at the
    threshold are taken site by site in the order of `bounds`, whose sums leave room for `remove_total`.
    """
    tallies = {site: _Tally(bound.least, bound.most) for site, bound in bounds.items()}
    if remove_total <= 0:
        return dict.fromkeys(bounds, 0)
    prefix = 0
    for step in range(STEPS):
        shift = STEP_BITS * (STEPS - 1 - step)
        for site, scores in score_stream():
            tallies[site].bins = _histogram(score_keys(scores), prefix, shift)
        total = torch.stack([tally.upto() for tally in tallies.values()]).sum(0)
        chosen = int((total < remove_total).sum())
        for tally in tallies.values():
            assert tally.bins is not None
            tally.below += int(tally.bins[:chosen].sum())
        prefix = (prefix << STEP_BITS) | chosen
        if step == STEPS - 1:
            equal = {
                site: int(tally.bins[chosen]) for site, tally in tallies.items() if tally.bins is not None
            }
    return _share_ties(tallies, equal, remove_total)


def _histogram(keys: Tensor, prefix: int, shift: int) -> Tensor:
    """Int64 [2^STEP_BITS]: keys whose higher bits are `prefix`, by their next STEP_BITS bits."""
    inside = keys[(keys >> (shift + STEP_BITS)) == prefix]
    return torch.bincount((inside >> shift) & ((1 << STEP_BITS) - 1), minlength=1 << STEP_BITS)


def _share_ties(tallies: Mapping[str, _Tally], equal: Mapping[str, int], remove_total: int) -> dict[str, int]:
    counts = {site: min(max(tally.below, tally.least), tally.cap) for site, tally in tallies.items()}
    left = remove_total - sum(counts.values())
    for site, tally in tallies.items():
        more = min(left, max(0, tally.below + equal[site] - counts[site]), tally.cap - counts[site])
        counts[site] += more
        left -= more
    assert left == 0
    return counts
