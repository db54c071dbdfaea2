"""The tasks of a network whose floors are kept: what each output is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compression.graphs.batches import Batch, Batches, cross_entropy, samples_of
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import GraphModule
from compression.graphs.floors import Task


def tasks_of(anatomy: Anatomy, batches: Batches, rise: float) -> list[Task]:
    """One task for each output of floating-point numbers: of the first, where all batches have classes, the
    cross entropy; of others one plus the squared distance to the dense output, over the mean square of that
    over all batches, so that `rise` is the share of its energy that an output may be off by."""
    module = GraphModule(anatomy.graph).eval().requires_grad_(False)
    with torch.no_grad():
        dense = {id(batch): module.run(batch.inputs) for batch in batches}
    names = [one.name for one in anatomy.graph.outputs if one.name in anatomy.probe.floating]
    labelled = bool(batches) and all(batch.labels is not None for batch in batches)
    found = []
    for place, name in enumerate(names):
        if labelled and place == 0:
            found.append(Task(name, _classes(name), rise))
        else:
            wanted = {key: outputs[name] for key, outputs in dense.items()}
            found.append(Task(name, _distance(anatomy, name, wanted), rise))
    return found


def _classes(name: str) -> Callable[[Mapping[str, Tensor], Batch], Tensor]:
    def loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return cross_entropy({name: outputs[name]}, batch)

    return loss


def _distance(
    anatomy: Anatomy, name: str, dense: Mapping[int, Tensor]
) -> Callable[[Mapping[str, Tensor], Batch], Tensor]:
    count = sum(one.numel() for one in dense.values())
    energy = sum(float(one.double().square().sum()) for one in dense.values()) / max(count, 1)
    scale = max(energy, torch.finfo(torch.float64).tiny)

    def loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        apart = (outputs[name].double() - dense[id(batch)].double()).square()
        return 1 + apart.reshape(samples_of(anatomy.probe, batch), -1).mean(1) / scale

    return loss
