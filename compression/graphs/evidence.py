"""What data say of the units of a graph: sums over batches at the gates where units are read.

Only what is asked for (`NEEDS`) is collected. Sums are float64 and of the size of what they describe, so
that memory does not grow with the number of batches; the same batches give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compression.errors import CompressionError
from compression.graphs.batches import (
    Batch,
    Batches,
    BatchInvalid,
    class_weights,
    cross_entropy,
    sample_weights,
    samples_of,
)
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gate, Gates, gated
from compression.seeds import site_generator

Floats = NDArray[np.float64]
ACTIVATIONS = frozenset(
    {"activation.mean", "activation.magnitude", "activation.square", "activation.variance"}
)
GRADIENTS = frozenset({"gradient.sum", "gradient.square"})
CURVATURES = frozenset({"curvature.trace", "curvature.self"})
OTHERS = frozenset({"activation.rank", "change", "gradient.group", "reading", "relevance", "removal"})
NEEDS = ACTIVATIONS | GRADIENTS | CURVATURES | OTHERS
"""What a criterion may ask for; see `Evidence`."""


class EvidenceMissing(CompressionError):
    """A criterion asks for what was not collected; the message names it."""

    code = "evidence_missing"


@dataclass(frozen=True)
class Evidence:
    """Statistics by what was asked for.

    `units`: float64 [units], numbered as in `gates`; not a number for what is not known of a unit.
    Of an activation a at the gates of a unit, averaged over samples, positions, elements and gates:
    "activation.mean" of a, "activation.magnitude" of |a|, "activation.square" of a^2,
    "activation.variance"; "activation.rank" is the mean rank of its feature maps. With g the derivative
    of a sample's loss with respect to a factor at all gates of the unit: "gradient.sum" is the mean of g,
    "gradient.square" that of g^2. "reading" is what the unit's readers lose at least, over the variance
    of what they give; "relevance" the mean of the size of a sample's relevance; "removal" the rise of the
    mean loss without the unit; "gradient.group" the mean over batches of the squared sum of gradient times
    weight (`saliency.py`).
    `weights`: by initializer that makes units, float64 of its shape, with H the Hessian of the mean loss:
    "curvature.trace" the diagonal of H, estimated; "curvature.self" the product H w; "gradient" that of the
    mean loss; "change" by how much filters change the data (`changes.py`). `samples`: how many were seen.
    """

    gates: Gates
    samples: int
    units: Mapping[str, Floats] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)

    def of(self, group: Group, need: str) -> Floats | None:
        """A statistic of the units of a group; None where it is not known of all of them (see
        `gates.silent`). EvidenceMissing if it was not collected."""
        if need not in self.units:
            raise EvidenceMissing(f"the statistic {need!r} of units was not collected")
        found = self.units[need][self.gates.of(group)]
        return None if group.name in self.gates.silent or np.isnan(found).any() else found

    def of_weight(self, initializer: str, need: str) -> Floats:
        """A statistic of an initializer. EvidenceMissing if it was not collected."""
        if need not in self.weights or initializer not in self.weights[need]:
            raise EvidenceMissing(f"the statistic {need!r} of {initializer!r} was not collected")
        return self.weights[need][initializer]


@dataclass(frozen=True)
class Collecting:
    """How evidence is collected. `balanced`: classes weigh the same, not samples. `probes`: random vectors
    a batch for the trace of the Hessian. `rank_samples`, `removal_samples`: samples that these costly
    statistics are taken from at most. `together`: units that are removed at once to see the loss rise, the
    rise being shared among them."""

    balanced: bool = False
    seed: int = 0
    probes: int = 1
    rank_samples: int = 32
    removal_samples: int = 128
    together: int = 1


def collect(
    anatomy: Anatomy, batches: Batches, needs: frozenset[str], how: Collecting | None = None
) -> Evidence:
    """Collect statistics over batches. The loss is the cross entropy where batches have labels, else half
    the squared distance to the outputs of the dense network: its gradient is zero there, so that
    "gradient.sum" needs labels, and "gradient.square" is the diagonal of J^T J, estimated by random
    projections of the outputs (J: derivative of the outputs).

    BatchInvalid where there is no batch or labels are missing; EvidenceMissing for a need that is none.
    """
    from compression.graphs import (
        changes,
        curvature,
        ranks,
        reading,
        relevance,
        removing,
        saliency,
    )  # they need Evidence's parts

    how = how or Collecting()
    unknown = sorted(needs - NEEDS)
    if unknown:
        raise EvidenceMissing(f"there is no statistic {unknown[0]!r}; there are {', '.join(sorted(NEEDS))}")
    if not batches:
        raise BatchInvalid("evidence of units needs at least one batch")
    gates = gated(anatomy)
    weights = class_weights(batches) if how.balanced else None
    module = GraphModule(gates.graph).eval()
    module.requires_grad_(False)
    if how.balanced or needs & (GRADIENTS | {"relevance"}):
        _check_samples(module, gates, batches[0])
    units: dict[str, Floats] = {}
    if needs & ACTIVATIONS:
        units |= _activations(module, gates, batches, weights)
    if needs & GRADIENTS:
        units |= _gradients(module, gates, batches, weights, needs, how.seed)
    if "activation.rank" in needs:
        units["activation.rank"] = ranks.feature_ranks(module, gates, batches, how)
    if "reading" in needs:
        units["reading"] = reading.losses_of_reading(module, gates, batches, weights)
    if "relevance" in needs:
        units["relevance"] = relevance.relevances(module, gates, batches, weights)
    if "removal" in needs:
        units["removal"] = removing.rises(module, gates, batches, weights, how)
    if "gradient.group" in needs:
        units["gradient.group"] = saliency.squared_group_gradients(anatomy, gates, batches, weights)
    made = curvature.curvatures(anatomy, batches, weights, needs, how) if needs & CURVATURES else {}
    if "change" in needs:
        made["change"] = changes.filter_changes(anatomy, batches, weights)
    return Evidence(gates, sum(samples_of(anatomy.probe, one) for one in batches), units, made)


def by_sample(gate: Gate, tensor: Tensor, samples: int) -> Tensor:
    """Sums over positions: [samples, size of the gated axis], float64. BatchInvalid for a value that does
    not have its samples along one axis, one behind the other."""
    moved = tensor.movedim(gate.axis, -1)
    if gate.samples is None:
        if samples > 1:
            raise BatchInvalid(
                f"the value {gate.source!r} has no axis of samples: give batches of one sample"
            )
        return moved.reshape(1, -1, moved.shape[-1]).sum(1, dtype=torch.float64)
    axis = gate.samples - (gate.samples > gate.axis)
    if gate.samples == gate.axis or moved.shape[axis] % samples:
        raise BatchInvalid(f"the samples of the value {gate.source!r} cannot be told apart")
    return moved.movedim(axis, 0).reshape(samples, -1, moved.shape[-1]).sum(1, dtype=torch.float64)


def _check_samples(module: GraphModule, gates: Gates, batch: Batch) -> None:
    """BatchInvalid where a change of the last sample is seen elsewhere than at the end of the axis that
    holds the batch: there samples cannot be told apart."""
    samples = samples_of(gates.anatomy.probe, batch)
    if samples < 2:
        return
    seen = gates.anatomy.probe
    other = dict(batch.inputs)
    for name, tensor in batch.inputs.items():
        axis = next((axis for axis in range(tensor.ndim) if seen.varies(name, axis)), None)
        if axis is not None and tensor.is_floating_point():
            last = tensor.narrow(axis, samples - 1, 1) * 0.5 + 1
            other[name] = torch.cat([tensor.narrow(axis, 0, samples - 1), last], axis)
    with torch.no_grad():
        pairs = zip(gate_values(module, gates, batch), gate_values(module, gates, Batch(other)), strict=True)
        for gate, (one, two) in zip(gates.gates, pairs, strict=True):
            apart = by_sample(gate, (one - two).abs(), samples)
            if float(apart[:-1].max()) > 1e-3 * float(by_sample(gate, one.abs(), samples).max()):
                raise BatchInvalid(
                    f"the samples of the value {gate.source!r} cannot be told apart: "
                    "give batches of one sample"
                )


def add_units(total: Tensor, gate: Gate, values: Tensor) -> None:
    """Add values [..., size of the gated axis] to their units in `total` [..., units], float64."""
    known = torch.from_numpy(np.flatnonzero(gate.units >= 0))
    numbers = torch.from_numpy(gate.units)[known]
    total.index_add_(-1, numbers, values[..., known].to("cpu", torch.float64))


POWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation.mean": lambda one: one,
    "activation.magnitude": torch.abs,
    "activation.square": torch.square,
}


def _activations(
    module: GraphModule, gates: Gates, batches: Batches, weights: Floats | None
) -> dict[str, Floats]:
    """Means are taken at each gate and then over the gates of a unit; so is the variance, which is that of
    each element."""
    sums = [
        {name: torch.zeros(len(gate.units), dtype=torch.float64) for name in POWERS} for gate in gates.gates
    ]
    counts = [0.0] * len(gates.gates)
    with torch.no_grad():
        for batch in batches:
            samples = samples_of(gates.anatomy.probe, batch)
            weighed = sample_weights(batch, samples, weights)
            for place, tensor in enumerate(gate_values(module, gates, batch)):
                gate = gates.gates[place]
                for name, power in POWERS.items():
                    sums[place][name] += weighed @ by_sample(gate, power(tensor), samples).cpu()
                counts[place] += float(weighed.sum()) * tensor.numel() / (len(gate.units) * samples)
    totals = {
        name: torch.zeros(gates.units, dtype=torch.float64) for name in (*POWERS, "activation.variance")
    }
    owned = torch.zeros(gates.units, dtype=torch.float64)
    for gate, made, count in zip(gates.gates, sums, counts, strict=True):
        means = {name: one / count for name, one in made.items()}
        variance = means["activation.square"] - means["activation.mean"].square()
        means["activation.variance"] = variance.clamp(min=0)
        for name, one in means.items():
            add_units(totals[name], gate, one)
        add_units(owned, gate, torch.ones(len(gate.units), dtype=torch.float64))
    return {name: (total / owned).numpy() for name, total in totals.items()}


def gate_values(module: GraphModule, gates: Gates, batch: Batch) -> list[Tensor]:
    """What passes each gate."""
    found = module.run(batch.inputs, [gate.value for gate in gates.gates])
    return [found[gate.value] for gate in gates.gates]


def _gradients(
    module: GraphModule,
    gates: Gates,
    batches: Batches,
    weights: Floats | None,
    needs: frozenset[str],
    seed: int,
) -> dict[str, Floats]:
    total = torch.zeros(2, gates.units, dtype=torch.float64)
    weighed_samples = 0.0
    generator = site_generator(seed, "projections of outputs")
    for batch in batches:
        if batch.labels is None and "gradient.sum" in needs:
            raise BatchInvalid(
                "the gradient of the distance to the dense outputs is zero at the dense network: "
                "first-order criteria need the class of every sample"
            )
        samples = samples_of(gates.anatomy.probe, batch)
        weighed = sample_weights(batch, samples, weights)
        found = unit_gradients(module, gates, batch, generator)
        total[0] += weighed @ found
        total[1] += weighed @ found.square()
        weighed_samples += float(weighed.sum())
    mean = (total / weighed_samples).numpy()
    return {"gradient.sum": mean[0], "gradient.square": mean[1]}


def unit_gradients(module: GraphModule, gates: Gates, batch: Batch, generator: torch.Generator) -> Tensor:
    """The derivative of each sample's loss with respect to a factor at all gates of a unit; float64
    [samples, units]. Without labels the loss is a product of the outputs with random signs."""
    samples = samples_of(gates.anatomy.probe, batch)
    leaves: dict[str, Tensor] = {}
    ends = []
    for name in dict.fromkeys(gate.value for gate in gates.gates):

        def note(tensor: Tensor, name: str = name) -> Tensor:
            # a copy of its own: the gradient is that of this reader alone
            made = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
            leaves[name] = made
            return made

        ends.append(module.watch(name, note))
    try:
        outputs = module.run(batch.inputs)
    finally:
        for end in ends:
            end()
    if batch.labels is not None:
        loss = cross_entropy(outputs, batch).sum()
    else:
        loss = torch.stack(
            [
                (one * _signs(one, generator)).sum()
                for one in outputs.values()
                if one.is_floating_point() and one.requires_grad
            ]
        ).sum()
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    slope_of = dict(zip(leaves, slopes, strict=True))
    made = torch.zeros(samples, gates.units, dtype=torch.float64)
    for gate in gates.gates:
        slope = slope_of[gate.value]
        if slope is not None:
            add_units(made, gate, by_sample(gate, leaves[gate.value].detach() * slope, samples))
    return made


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return drawn.to(like.device, like.dtype)
