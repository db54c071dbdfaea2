"""Learned gates: which units are there is trained, the weights are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gate, Gates, gated
from compression.graphs.losses import objective_loss
from compression.graphs.schedules.base import SCHEDULES, Course, Outcome, Work, fit
from compression.graphs.soft_costs import SoftCosts
from compression.graphs.training import watching
from compression.recovery.training import Loss

COURSE = Course("training-gates", 0.6, "adamw")
OPEN = 3.0
"""Of a gate before the sigmoid, at the start: 0.95 of a unit passes."""
COST = 6.0
"""beta of the paper: the weight of the constraint."""
CRISP = 0.4
"""gamma of the paper: the weight of how far gates are from closed or open."""
KEY = "gates"


class GatesTrained:
    """Gates of a graph whose weights and statistics are frozen (`recovery.training.Trained`): one master,
    [units], through a sigmoid. Units that no gate is of pass whole."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.module: GraphModule = watching(gates.graph)
        self._logits = torch.full((gates.units,), OPEN).requires_grad_(True)
        self.masters: Mapping[str, Tensor] = {KEY: self._logits}
        self.buffers: Mapping[str, Tensor] = {}
        self._free = torch.zeros(gates.units, dtype=torch.bool)
        for group in gates.anatomy.groups:
            self._free[gates.of(group)] = group.name not in gates.silent
        for gate in gates.gates:
            self.module.watch(gate.value, self._closing(gate))

    def _closing(self, gate: Gate) -> Callable[[Tensor], Tensor]:
        places = torch.from_numpy(gate.units)
        units = torch.where(places < 0, self._gates.units, places)

        def close(tensor: Tensor) -> Tensor:
            opened = torch.cat([self.open(), torch.ones(1)])[units]
            shape = [1] * tensor.ndim
            shape[gate.axis] = -1
            return tensor * opened.to(tensor.device, tensor.dtype).reshape(shape)

        return close

    def open(self) -> Tensor:
        """How far every unit is open, between 0 and 1; float32 [units]."""
        return torch.where(self._free, torch.sigmoid(self._logits), 1.0)

    def train(self, on: bool) -> None:
        """Running statistics are used in training, too."""

    def gather(self) -> None:
        """Gradients are on the master already."""

    def publish(self) -> None:
        """The module computes with the master already."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The gates."""
        yield KEY, self.open().detach()


def bottleneck_loss(task: Loss, trained: GatesTrained, costs: SoftCosts, ratio: float, beta: float) -> Loss:
    """Task + beta * constraint + gamma * crispness (Castells and Yeom 2021). With the share g of the costs
    that open gates leave, the constraint is (g - ratio) / (1 - ratio) above the ratio and 1 - g / ratio
    below it: 1 at both ends, 0 where the costs are those asked for. Crispness is the mean distance of gates
    to 0 or 1, whichever is nearer."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        opened = trained.open()
        left = costs.ratio(opened)
        constraint = torch.where(left >= ratio, (left - ratio) / (1 - ratio), 1 - left / ratio)
        crisp = torch.minimum(opened, 1 - opened).mean()
        return task(batch) + beta * constraint + CRISP * crisp

    return loss


@SCHEDULES.register
class LearnedGates:
    """AutoBot (Castells and Yeom, 2021): a gate for every unit is trained on the loss and the costs while
    all weights stay as they are; units whose gates are least open go. Weights do not change, so the options
    `criterion` means nothing, and recovery is for later."""

    name = "gates"
    summary = "A gate for every unit is trained against loss and costs, weights stay; closed ones go."
    paper: str | None = "2111.09635"
    trains = True
    scores = True

    def run(self, work: Work) -> Outcome:
        """Raises TargetUnreachable, RecoveryDiverged."""
        gates = gated(work.anatomy)
        trained = GatesTrained(gates)
        teacher = watching(work.anatomy.graph) if work.objective.needs_dense else None
        task = objective_loss(trained.module, teacher, work.read, work.objective)
        costs = SoftCosts(work.anatomy, work.measure)
        beta = COST if work.settings.penalty is None else work.settings.penalty
        fit(work, trained, bottleneck_loss(task, trained, costs, work.ratio, beta), COURSE)
        opened = trained.open().detach()
        plain = opened.double().numpy()
        scores = {
            group.name: plain[gates.of(group)]
            for group in work.anatomy.groups
            if group.name not in gates.silent
        }
        units = work.choose(scores, scales=dict.fromkeys(scores, 1.0))
        shut = int((opened < 0.5).sum())
        told = (
            f"Gates leave {float(costs.ratio(opened)):.3f} of the {work.measure} ({work.ratio:.3f} are asked "
            f"for); {shut} of {gates.units} are more shut than open."
        )
        return Outcome(work.anatomy.graph, units, (told,))
