"""How a job on a graph chooses units: its options, with what its data say of them."""

from __future__ import annotations

from collections.abc import Callable

from compression.graphs.batches import Batch, Batches
from compression.graphs.criteria import CRITERIA
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Collecting
from compression.graphs.floors import Floors
from compression.graphs.pruning import evidence_for
from compression.stages.graphs.choice import Ways
from compression.stages.job import Loaded

FOLLOW_A_LOSS = frozenset({"gradient.sum", "removal"})
FLOOR_SAMPLES = 128
"""Calibration samples that floors are measured on at most: every step of every group runs them all."""


def ways_of(
    loaded: Loaded,
    anatomy: Anatomy,
    criterion: str,
    batches: Callable[[bool], Batches],
    *,
    baseline: bool = False,
) -> Ways:
    """The options as ways to choose, scored by a criterion. `batches` gives those of the calibration data,
    which must have labels if it is told so. A baseline is held to no floors, as it is there to show what
    they spare: the lowest scores of all groups go instead."""
    options, seed = loaded.specification.options, loaded.specification.seed
    needs = CRITERIA[criterion].needs
    evidence = None
    if needs:
        found = batches(bool(needs & FOLLOW_A_LOSS))
        evidence = evidence_for(anatomy, criterion, found, Collecting(seed=seed))
    allocation = str(options["allocation"])
    if baseline and allocation == "floors":
        allocation = "global"
    floors: Floors | None = None
    measured: Batches = ()
    if allocation == "floors":
        floors = Floors(
            float(options["floor_share"]), int(options["floor_rounds"]), float(options["floor_relax"])
        )
        measured = _first(batches(False))
    return Ways(
        criterion,
        allocation,
        str(options["normalise"]),
        float(options["minimum_share"]),
        int(options["channel_multiple"]),
        seed,
        evidence,
        measured,
        floors,
        float(options["floor_rise"]),
    )


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
