"""Tables of times that are made up: what a layer takes is known, so that choices can be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import LatencyTable, shape_key, timed_structures, timed_tokens

LAYER, REST = 0.010, 0.004
NEURONS, HEADS = 0.006, 0.003
"""Seconds of a layer that are its neurons' and its heads', in proportion to how many there are."""


def made_table(inspection: Inspection, **changes: Any) -> LatencyTable:
    """A layer of 10 ms, of which 6 are its neurons' and 3 its heads', and 4 ms beside all layers."""
    parts: Mapping[str, float] = {"neuron": NEURONS, "head": HEADS, "expert": 0.0}
    levels = {}
    for one in timed_structures(inspection):
        part = parts[one.kind]
        counts = sorted({1, one.count // 2, one.count})
        levels[one.kind] = tuple((n, LAYER - part * (1 - n / one.count)) for n in counts)
    facts: dict[str, Any] = {
        "shape": shape_key(inspection),
        "device": "A processor",
        "kind": "cpu",
        "threads": 1,
        "runtime": "transformers 0, torch 0",
        "dtype": "float32",
        "tokens": timed_tokens(inspection),
        "layers": inspection.layers,
        "rounds": 5,
        "layer": LAYER,
        "rest": REST,
        "levels": levels,
    }
    return LatencyTable.model_validate({**facts, **changes})


def made_seconds(inspection: Inspection, widths: Mapping[str, int], layers: int | None = None) -> float:
    """What the made-up table means for widths, written out."""
    counts = {one.kind: one.count for one in inspection.structures}
    parts = {"neuron": NEURONS, "head": HEADS, "expert": 0.0}
    layer = LAYER - sum(parts[kind] * (1 - kept / counts[kind]) for kind, kept in widths.items())
    return REST + layer * (inspection.layers if layers is None else layers)
