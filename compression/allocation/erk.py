"""ERK: densities by the shapes of the weights."""

from __future__ import annotations

from compression.allocation import allocations
from compression.allocation.base import Evidence, scaled


@allocations.register
class Erk:
    """Density in proportion to (in + out) / (in * out), of a convolution to (in + out + the sizes of its
    kernel) / their product (Evci et al. 2020, Rigging the Lottery, section 3; Mocanu et al. 2018).
    """

    name = "erk"
    summary = "Erdos-Renyi: small and narrow weights keep more. Looks at shapes alone."
    paper = "1911.11134"
    needs = frozenset[str]()

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """Densities c * (sum of extents) / (product of extents), at most 1, with the c that makes the total
        right."""
        importance = {site.name: sum(site.extents) / site.size for site in evidence.sites}
        return scaled(evidence, importance, remove_total)
