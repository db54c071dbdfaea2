"""What a reader loses with a unit if its other weights make up for it as well as they can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.graphs.batches import Batches, sample_weights, samples_of
from compression.graphs.evidence import Floats, add_units
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gate, Gates
from compression.graphs.graph import Node
from compression.graphs.patches import patches

DAMPING = 0.01
"""Share of the mean variance of an input that is added to all, as in `reconstruction.Fit`."""
ROWS = 1 << 16
"""Positions that a matrix of second moments is taken from at most."""
TOGETHER = 1 << 27
"""Elements of such matrices that are held at once; readers take turns otherwise."""


@dataclass
class _Reader:
    """A node that multiplies what passes a gate by a matrix [out, in], and sums over rows of its inputs."""

    node: Node
    gate: Gate
    weight: Tensor
    gram: Tensor
    first: Tensor
    rows: float = 0.0


def losses_of_reading(module: GraphModule, gates: Gates, batches: Batches, weights: Floats | None) -> Floats:
    """By unit, summed over its readers: the least mean squared error of the reader's outputs without the
    unit, over their variance.

    Removing columns u of W leaves the sum over rows w of w_u [(C^-1)_uu]^-1 w_u^T after the best update of
    the rest, C the covariance of the inputs, damped (Hassibi and Stork 1993, Optimal Brain Surgeon, for
    blocks; a bias is free). Not a number for units that only others read: grouped and transposed
    convolutions, recurrent layers, products of two computed values.
    """
    total = torch.zeros(gates.units, dtype=torch.float64)
    known = torch.zeros(gates.units, dtype=torch.float64)
    samples = sum(samples_of(gates.anatomy.probe, batch) for batch in batches)
    for readers in _turns(module, gates):
        _sum_up(readers, module, gates, batches, weights, samples)
        for reader in readers:
            add_units(total, reader.gate, _errors(reader))
            add_units(known, reader.gate, torch.ones(len(reader.gate.units), dtype=torch.float64))
    found: Floats = torch.where(known > 0, total, np.nan).numpy()
    return found


def _turns(module: GraphModule, gates: Gates) -> Iterator[list[_Reader]]:
    nodes = gates.graph.producers()
    held: list[_Reader] = []
    size = 0
    for gate in gates.gates:
        node = nodes[gate.reader]
        weight = _matrix(module, node, gate)
        if weight is None:
            continue
        width = weight.shape[1]
        if held and size + width**2 > TOGETHER:
            yield held
            held, size = [], 0
        zeros = torch.zeros(width, dtype=torch.float64)
        held.append(_Reader(node, gate, weight, torch.zeros(width, width, dtype=torch.float64), zeros))
        size += width**2
    if held:
        yield held


def _matrix(module: GraphModule, node: Node, gate: Gate) -> Tensor | None:
    """The weights of a reader as float64 [out, in]; None for a reader of another kind."""
    if gate.place != 0 or node.input(1) not in module.graph.initializers:
        return None
    weight = module.initializer(node.inputs[1]).detach().double()
    if node.operator == "Conv" and node.integer("group", 1) == 1 and weight.ndim <= 4:
        return weight.flatten(1)
    if node.operator == "Gemm" and not node.integer("transA", 0):
        return weight if node.integer("transB", 0) else weight.T
    return weight.T if node.operator == "MatMul" and weight.ndim == 2 else None


def _sum_up(
    readers: list[_Reader],
    module: GraphModule,
    gates: Gates,
    batches: Batches,
    weights: Floats | None,
    samples: int,
) -> None:
    values = [reader.gate.value for reader in readers]
    with torch.no_grad():
        for batch in batches:
            count = samples_of(gates.anatomy.probe, batch)
            weighed = sample_weights(batch, count, weights)
            found = module.run(batch.inputs, values)
            for reader in readers:
                weight = module.initializer(reader.node.inputs[1])
                rows = patches(reader.node, found[reader.gate.value], weight)
                stride = -(-rows.shape[0] // count * samples // ROWS)
                shares = weighed.repeat_interleave(rows.shape[0] // count)[::stride, None]
                rows = rows[::stride]
                scaled = rows * shares.to(rows.device, rows.dtype)
                reader.gram += (rows.T @ scaled).cpu().double()
                reader.first += scaled.sum(0, dtype=torch.float64).cpu()
                reader.rows += float(shares.sum())


def _errors(reader: _Reader) -> Tensor:
    """The error by element of the gated axis: that of its unit, shared by the unit's elements here."""
    mean = reader.first / reader.rows
    covariance = reader.gram / reader.rows - mean[:, None] * mean[None, :]
    weight = reader.weight.cpu()
    spread = float(((weight @ covariance) * weight).sum())
    ridge = DAMPING * float(covariance.diagonal().mean()) + torch.finfo(torch.float64).tiny
    damped = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    size = len(reader.gate.units)
    columns = torch.arange(len(covariance)).reshape(size, -1)
    found = torch.zeros(size, dtype=torch.float64)
    for unit in np.unique(reader.gate.units[reader.gate.units >= 0]):
        places = torch.from_numpy(np.flatnonzero(reader.gate.units == unit))
        own = columns[places].flatten()
        part = weight[:, own]
        error = (torch.linalg.solve(inverse[own][:, own], part.T) * part.T).sum()
        found[places] = error / max(spread, 1e-30) / len(places)
    return found
