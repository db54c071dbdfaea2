"""Block influence: layers that change the hidden states more keep more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compression.allocation import allocations
from compression.allocation.base import Evidence, around, by_layer, mean_sparsity, shifted
from compression.parameters import parameter


@allocations.register
@dataclass(frozen=True)
class BlockInfluence:
    """Importance of a layer = 1 - E[cos(what enters, what leaves)] (Men et al. 2024, ShortGPT, equation
    1)."""

    name: ClassVar[str] = "block-influence"
    summary: ClassVar[str] = "Layers that turn the hidden states more keep more."
    paper: ClassVar[str | None] = "2403.03853"
    needs: ClassVar[frozenset[str]] = frozenset({"influence"})

    influence_reach: float = parameter(
        0.1, "Block influence: how far a layer's sparsity may be from the target.", ge=0.0, le=0.5
    )

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        influence = dict(enumerate(evidence.influence()))
        present = {site.layer for site in evidence.sites}
        values = {layer: value for layer, value in influence.items() if layer in present}
        sparsities = around(values, mean_sparsity(evidence, remove_total), self.influence_reach)
        return shifted(evidence, by_layer(evidence, sparsities), remove_total)
