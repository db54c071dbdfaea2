"""What a graph is trained to do: name classes, answer as the dense graph does, compute what it computes on
the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compression.errors import RecoveryImpossible
from compression.graphs.batches import Batch, cross_entropy
from compression.graphs.executor import GraphModule
from compression.recovery.training import Loss

Read = Callable[[dict[str, Tensor]], Batch]
"""A batch of a dataset -> the inputs of the graph, and labels where there are any."""


@dataclass(frozen=True)
class Inner:
    """A value whose distance to the dense graph's counts `weight`: the sum of squared differences over the
    sum of the squares of the dense value. `kept`: by axis, int64 places of the dense value that the
    graph in training has, where it was cut."""

    value: str
    weight: float = 1.0
    kept: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of a loss; a part of weight 0 is not computed.

    `labels`: cross entropy of the first output [samples, classes, ...] in nats. `dense`: mean KL divergence
    of the first output's classes from the dense graph's at `temperature`, times its square (Hinton, Vinyals,
    Dean 2015, arXiv 1503.02531). `inner`: values on the way (Romero et al. 2015, arXiv 1412.6550).
    """

    labels: float = 0.0
    dense: float = 1.0
    temperature: float = 4.0
    inner: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if min(self.labels, self.dense, *(one.weight for one in self.inner)) < 0 or self.temperature <= 0:
            raise ValueError("weights of losses are not negative, the temperature is positive")
        if not self.labels and not self.dense and not self.inner:
            raise ValueError("a loss has at least one part whose weight is not 0")

    @property
    def needs_dense(self) -> bool:
        """Whether the dense graph is asked for every batch."""
        return bool(self.dense or self.inner)


def objective_loss(student: GraphModule, teacher: GraphModule | None, read: Read, what: Objective) -> Loss:
    """The loss of a batch of a dataset, a scalar. `teacher` computes the dense graph (None where `what` asks
    nothing of it). RecoveryImpossible for a teacher that is missing; BatchInvalid for labels that are missing
    or do not fit."""
    if what.needs_dense and teacher is None:
        raise RecoveryImpossible("a loss that follows the dense graph needs the dense graph")
    logits = student.graph.outputs[0].name
    watched = list(dict.fromkeys([logits, *(one.value for one in what.inner)]))

    def loss(given: dict[str, Tensor]) -> Tensor:
        batch = read(given)
        found = student.run(batch.inputs, watched)
        parts: list[Tensor] = []
        if what.labels:
            parts.append(cross_entropy({logits: found[logits].float()}, batch).mean() * what.labels)
        if what.needs_dense and teacher is not None:
            with torch.no_grad():
                wanted = teacher.run(batch.inputs, watched)
            if what.dense:
                parts.append(divergence(wanted[logits], found[logits], what.temperature) * what.dense)
            parts += [one.weight * inner(wanted[one.value], found[one.value], one) for one in what.inner]
        return torch.stack(parts).sum()

    return loss


def divergence(dense: Tensor, found: Tensor, temperature: float) -> Tensor:
    """Mean over all but the axis of classes of KL(dense || found) in nats, times the square of the
    temperature; logits [samples, classes, ...]."""
    target = F.log_softmax(dense.float() / temperature, 1)
    guess = F.log_softmax(found.float() / temperature, 1)
    return (target.exp() * (target - guess)).sum(1).mean() * temperature**2


def inner(dense: Tensor, found: Tensor, one: Inner) -> Tensor:
    """The squared distance of a value to the dense one's kept part, relative to that part's squares."""
    for axis, places in one.kept.items():
        dense = dense.index_select(axis, torch.from_numpy(places).to(dense.device))
    if dense.shape != found.shape:
        raise RecoveryImpossible(
            f"the value {one.value!r} is of shape {tuple(found.shape)}, in the dense graph of "
            f"{tuple(dense.shape)}: say which places of its axes were kept"
        )
    wanted = dense.float()
    squares = wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (found.float() - wanted).square().sum() / squares
