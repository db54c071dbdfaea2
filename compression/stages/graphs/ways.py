"""How a job on a graph chooses units: its options, with what its data say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compression.graphs.batches import Batch, Batches
from compression.graphs.floors import Floors
from compression.stages.graphs.choice import Ways, plain_ways
from compression.stages.graphs.statistics import Shown

FLOOR_SAMPLES = 128
"""Calibration samples that floors are measured on at most: every step of every group runs them all."""


def ways_of(
    options: Mapping[str, Any],
    seed: int,
    criterion: str,
    shown: Shown,
    *,
    baseline: bool = False,
) -> Ways:
    """The options as ways to choose, scored by a criterion with what the data say. A baseline is held to no
    floors, as it is there to show what they spare: the lowest scores of all groups go instead."""
    ways = replace(plain_ways(options, criterion, seed), evidence=shown.evidence(criterion))
    if ways.allocation != "floors":
        return ways
    if baseline:
        return replace(ways, allocation="global")
    floors = Floors(
        float(options["floor_share"]), int(options["floor_rounds"]), float(options["floor_relax"])
    )
    measured = _first(shown.batches())
    return replace(ways, batches=measured, floors=floors, rise=float(options["floor_rise"]))


def _first(batches: Batches) -> Batches:
    """The first batches, up to so many samples, at least one batch."""
    found: list[Batch] = []
    samples = 0
    for batch in batches:
        size = max((len(one) for one in batch.inputs.values() if one.ndim), default=1)
        if found and samples + size > FLOOR_SAMPLES:
            break
        found.append(batch)
        samples += size
    return found
