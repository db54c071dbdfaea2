"""LaCo's layer merge: what dropped layers add goes into the layer before them."""

from __future__ import annotations

from collections.abc import Sequence

from compression.merging import Coefficients, collapsed
from compression.updates.layers import layer_updates


@layer_updates.register
class Merge:
    """theta_l + sum of (theta_{l+k} - theta_l) over the dropped run after layer l (Yang et al. 2024, equation
    1), of all parameters of the layers.

    The authors' code adds the differences to the layer one after another, which leaves the weights of the
    last dropped layer alone, and keeps the norms of the first; here it is the equation.
    """

    name = "merge"
    summary = (
        "Adds to the layer before a dropped run what each of its layers differs by from that layer; of a run "
        "of one layer, that layer's values take the place of those before it."
    )
    paper = "2402.11187"
    needs = frozenset[str]()
    bases = 1

    def coefficients(self, layers: int, rounds: Sequence[Sequence[int]]) -> Coefficients:
        """See `compression.merging.collapsed`."""
        return collapsed(layers, rounds)
