"""Multiply-accumulates, counted from an inspection. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from compression.anatomy.families.base import MAXIMUM_EXPERTS
from compression.anatomy.inspection import Inspection, Site


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the matrix products of one forward pass over one sequence of `tokens` tokens;
    of an encoder with a decoder: over so many tokens of input and as many of target.

    `sites` are the prunable weights (tokens x size each), `attention` the scores and weighted values of all
    layers (the full square, whatever the mask; of windows, their squares), `head` what is multiplied outside
    the sites (heads, routers).
    Of a mixture of experts only the experts that are used count: each token multiplies with k of n, so the
    weights of one expert count for k / n of the tokens, as if the router spread them evenly (the sum over all
    experts of a layer is exact whatever it does). Embedding look-ups, norms, activations, biases and rotary
    positions count nothing.
    """

    tokens: int
    sites: Mapping[str, int]
    attention: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.sites.values()) + self.attention + self.head


def count_macs(inspection: Inspection, sequence_length: int) -> Macs:
    """Multiply-accumulates of one forward pass over one sequence of `sequence_length` tokens; see `Macs`."""
    rows = sum(inspection.layer_heads) or (inspection.layers + inspection.cross_layers) * inspection.heads
    squares = rows * inspection.head_dim * sequence_length * sequence_length
    return Macs(
        tokens=sequence_length,
        sites=_site_macs(inspection.sites, sequence_length),
        attention=inspection.window_macs or 2 * squares,
        head=sequence_length * (inspection.token_macs + inspection.layers * inspection.layer_macs)
        + inspection.sequence_macs,
    )


def _site_macs(sites: Iterable[Site], tokens: int) -> dict[str, int]:
    """Whole numbers, each within one of what is exact, whose sum is the sum of the exact ones, rounded."""
    found: dict[str, int] = {}
    exact, counted = Fraction(0), 0
    for site in sites:
        # A share is k of n experts, or the tokens of a stage by those of the sequence.
        share = Fraction(site.share).limit_denominator(max(MAXIMUM_EXPERTS, tokens))
        exact += tokens * site.size * share
        found[site.name] = round(exact) - counted
        counted += found[site.name]
    return found


def used_macs(site: Site, tokens: int, weights: int) -> int:
    """Multiply-accumulates of `tokens` tokens of a sequence with so many weights of a site."""
    return round(tokens * weights * site.share)
