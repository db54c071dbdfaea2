"""Which part of the calibration data to prune by: that whose choice of units turns the predictions least."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.structures import Group
from compression.checkpoint import Store
from compression.criteria.base import ActivationsNotFinite
from compression.criteria.units import best
from compression.divergence import Judge
from compression.evaluation.types import rows
from compression.loading.streamed import StreamedModel
from compression.pruning import Batch
from compression.stages.job import Loaded
from compression.structured import Measured, StructurePruner
from compression.submodels import Masked

STEP = "calibration-set"
Build = Callable[[Sequence[Batch], Store], StructurePruner]
"""A pruner on some batches that knows how many units each group keeps; its steps go into the store."""


def calibration_set(
    loaded: Loaded, batches: Sequence[Batch] | None, options: Mapping[str, Any], store: Store, build: Build
) -> Sequence[Batch] | None:
    """The set of sequences by which the units are chosen without which the predictions of the dense model, on
    the first `calibration_set_sequences` of all, diverge least (Ai et al. 2025, NIRVANA: calibration data by
    the Kullback-Leibler divergence of what is pruned by them). What updates would do is not looked at.

    Sequence n is in set n modulo `calibration_sets`; sets without any are left out, and all sequences are
    given where there is one set. The choice is kept as step `calibration-set`. Raises ActivationsNotFinite if
    the predictions overflow whichever is taken.
    """
    sets, sequences = int(options["calibration_sets"]), int(options["calibration_set_sequences"])
    if sets == 1 or batches is None:
        return batches
    parts = [part for part in (_part(batches, sets, number) for number in range(sets)) if part]
    if not store.has(STEP):
        judge = Judge(loaded.dense_model(), batches, min(sequences, sum(map(rows, batches))))
        found = []
        for number, part in enumerate(parts):
            scratch = loaded.work / "scratch" / f"set-{number}"
            shutil.rmtree(scratch, ignore_errors=True)
            pruner = build(part, Store(scratch, store.key))
            pruner.prepare()
            found.append(judge.divergence(_masked(loaded, pruner)))
            shutil.rmtree(scratch, ignore_errors=True)
        if not any(map(math.isfinite, found)):
            raise ActivationsNotFinite(
                "the predictions without units are not finite on the calibration data, whichever part of it "
                "they are chosen by: the model overflows; check that its checkpoint is sound and of a type "
                "that holds its values"
            )
        chosen = min(range(len(found)), key=lambda number: (found[number], number))
        told = [one if math.isfinite(one) else None for one in found]
        store.save(STEP, None, {"set": chosen, "divergences": told})
    return parts[int(store.data(STEP)["set"])]


def _masked(loaded: Loaded, pruner: StructurePruner) -> Masked:
    """The model without the units that would go."""
    kept: dict[str, Tensor] = dict(pruner.chosen)

    def seen(model: StreamedModel, group: Group, scores: Tensor, measured: Measured | None) -> None:
        kept.setdefault(group.name, best(scores, pruner.keep[group.name]))

    pruner.look(seen)
    groups = {group.name: group for group in pruner.all_groups}
    less = {name: units for name, units in kept.items() if len(units) < groups[name].count}
    return Masked(loaded.dense_model().reader, groups, less)


def _part(batches: Sequence[Batch], sets: int, number: int) -> list[Batch]:
    return list(_rows(batches, sets, number))


def _rows(batches: Sequence[Batch], sets: int, number: int) -> Iterator[Batch]:
    start = 0
    for batch in batches:
        count = rows(batch)
        chosen = [row for row in range(count) if (start + row) % sets == number]
        start += count
        if chosen:
            index = torch.tensor(chosen)
            yield {name: value[index.to(value.device)] for name, value in batch.items()}
