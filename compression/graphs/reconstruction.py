"""What stays makes up for what went: weights of the readers of removed units are fitted to the dense graph.

The cut graph runs beside the dense one, node by node over the calibration batches, and every convolution
or product with a matrix whose input differs is fitted to the channels that the dense one gives there, before
the next node runs; so each sees the errors that are left before it.

- `bias`: the mean of every output channel. Where only the reader's own inputs were removed, this adds
  W_removed E[x_removed] to the bias (Berisha et al. 2025, Variance-Based Pruning, arXiv:2507.12988), zero
  padding counted.
- `moments`: mean and deviation of every channel of a convolution: what re-estimating the statistics of a
  BatchNorm does, for those that the exporter folded into convolutions. Elsewhere the mean alone.
- `least-squares`: weights W + D and bias with the least mean of ||y_dense - y||^2 + damping * v * ||D||^2,
  v the mean variance of an input (closed form; the update of OBSPA and UDFC, arXiv:2403.18955, 2308.07209,
  in its regression form). Each group of a convolution is fitted for itself, with the v of its own inputs.
  Transposed convolutions and those over three axes get their means alone.

Without data, batches of unit Gaussians (`gaussian_batches`) stand in, or such as have the statistics that
BatchNorms remember (`synthetic.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compression.graphs.batches import Batches, BatchInvalid
from compression.graphs.biases import WEIGHTED, bias_behind, with_biases
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import to_numpy
from compression.graphs.graph import Graph, Node
from compression.graphs.lockstep import Lockstep
from compression.graphs.patches import patches
from compression.graphs.regression import Regression
from compression.graphs.removal import Cut, Removed, removed_labels

HOWS = ("bias", "least-squares", "moments")


@dataclass(frozen=True)
class Fit:
    """How weights are fitted. `damping`: see above; `rows`: positions that a least-squares fit is taken from
    at most, evenly spread over the batches."""

    how: str = "least-squares"
    damping: float = 0.01
    rows: int = 1 << 16

    def __post_init__(self) -> None:
        if self.how not in HOWS or self.damping < 0 or self.rows < 1:
            raise ValueError(f"weights are fitted by {', '.join(HOWS)}, with a damping of 0 or more")


@dataclass(frozen=True)
class Reconstructed:
    """The cut graph with fitted weights; by the first output of a node how it was fitted (of `HOWS`), and
    why others whose inputs differ were not."""

    graph: Graph
    fitted: Mapping[str, str]
    left: Mapping[str, str]


def reconstruct(
    anatomy: Anatomy, removed: Removed, batches: Batches, fit: Fit | None = None
) -> Reconstructed:
    """The graph without the units `removed`, fitted to what the dense one gives on the batches.

    Memory holds what is live of all batches in both graphs. BatchInvalid without batches; CutImpossible as of
    `cut`.
    """
    if not batches:
        raise BatchInvalid("weights are fitted on at least one batch")
    work = _Work(anatomy, removed, batches, fit or Fit())
    return work.run()


class _Work:
    def __init__(self, anatomy: Anatomy, removed: Removed, batches: Batches, fit: Fit) -> None:
        removed = {name: list(units) for name, units in removed.items()}
        self.anatomy, self.fit = anatomy, fit
        self.cut = Cut(anatomy, removed_labels(anatomy, removed))
        self.biased = with_biases(cut(anatomy, removed))
        graph = self.biased.graph
        self.dense, self.small = Lockstep(anatomy.graph, batches), Lockstep(graph, batches)
        self.readers = graph.consumers()
        self.differ: set[str] = set()
        self.fitted: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def run(self) -> Reconstructed:
        for node in self.small.graph.nodes:
            changed = [
                name in self.differ or self._shorter(name)
                for name in node.inputs
                if name and name not in self.small.initializers
            ]
            known = node.value in self.dense.places and node.value in self.anatomy.probe.floating
            if any(changed[:1]) and known and node.operator in WEIGHTED:
                why = self._not_fitted(node)
                if why:
                    self.left[node.value] = why
                else:
                    self.small.before(node.value)
                    self.dense.advance(node.value)
                    self.fitted[node.value] = self._fit(node)
            if any(changed):
                self.differ.update(name for name in node.outputs if name)
        arrays = {
            name: to_numpy(self.small.initializers[name], array)
            for name, array in self.small.graph.initializers.items()
        }
        graph = self.biased.pruned(replace(self.small.graph, initializers=arrays), set(self.fitted))
        return Reconstructed(graph, self.fitted, self.left)

    def _shorter(self, name: str) -> bool:
        return name in self.anatomy.axes and self.cut.changes(name)

    def _not_fitted(self, node: Node) -> str:
        weight = node.inputs[1]
        if weight not in self.small.initializers:
            return "its weight is computed"
        if node.operator == "MatMul" and self.small.initializers[weight].ndim != 2:
            return "its weight is no matrix"
        if any(len(self.readers[name]) > 1 for name in node.inputs[1:] if name):
            return "it shares its weight"
        plain = (node.number("alpha", 1) == node.number("beta", 1) == 1) and not node.integer("transA", 0)
        if node.operator == "Gemm" and not plain:
            return "it scales or transposes what it multiplies"
        if self._bias(node) is None:
            return "its bias is computed or shared"
        return ""

    def _bias(self, node: Node) -> str | None:
        """The name of the bias of a node, a vector of its own; None if there is none."""
        if node.operator == "MatMul":
            return bias_behind(self.small.graph, self.readers, node.value)
        name = node.input(2)
        found = self.small.initializers.get(name)
        alone = found is not None and len(self.readers[name]) == 1 and found.ndim == 1
        return name if alone else None

    def _fit(self, node: Node) -> str:
        how = self.fit.how
        many_axes = self.small.initializers[node.inputs[1]].ndim > 4
        if how == "least-squares" and (node.operator == "ConvTranspose" or many_axes):
            how = "bias"
        if how == "moments" and node.operator != "Conv":
            how = "bias"
        {"bias": self._bias_fit, "moments": self._moments_fit, "least-squares": self._squares_fit}[how](node)
        return how

    def _pairs(self, node: Node) -> list[tuple[Tensor, Tensor]]:
        """Of every batch what the dense node gives, of the channels that stay, and what this one gives;
        channels last."""
        axis = -1 if node.operator in {"Gemm", "MatMul"} else 1
        found = []
        for place, values in enumerate(self.dense.values):
            wanted = values[node.value]
            for along in range(wanted.ndim):
                kept = self.cut.keep(node.value, along)
                if kept is not None:
                    wanted = wanted.index_select(
                        along, torch.from_numpy(np.flatnonzero(kept)).to(wanted.device)
                    )
            made = self.small.outputs(node, place)[0]
            found.append((wanted.movedim(axis, -1), made.movedim(axis, -1)))
        return found

    def _bias_fit(self, node: Node) -> None:
        pairs = self._pairs(node)
        shift = _mean([wanted - made for wanted, made in pairs])
        self._change(node, None, shift)

    def _moments_fit(self, node: Node) -> None:
        pairs = self._pairs(node)
        wanted, made = (_moments([pair[side] for pair in pairs]) for side in range(2))
        scale = torch.where(made[1] > 1e-12, (wanted[1] / made[1].clamp(min=1e-12)).sqrt(), 1.0)
        name, bias = node.inputs[1], self._bias(node)
        assert bias is not None
        weight, old = self.small.initializers[name], self.small.initializers[bias]
        shape = [-1] + [1] * (weight.ndim - 1)
        self.small.initializers[name] = (weight * scale.reshape(shape)).to(weight.dtype)
        self.small.initializers[bias] = ((old - made[0]) * scale + wanted[0]).to(old.dtype)

    def _squares_fit(self, node: Node) -> None:
        pairs = self._pairs(node)
        total = sum(wanted.numel() // wanted.shape[-1] for wanted, _ in pairs)
        stride = -(-total // self.fit.rows)
        groups = node.integer("group", 1) if node.operator == "Conv" else 1
        sums = Regression()
        for place, (wanted, made) in enumerate(pairs):
            inputs = patches(
                node, self.small.values[place][node.inputs[0]], self.small.initializers[node.inputs[1]]
            )
            errors = (wanted - made).reshape(-1, groups, wanted.shape[-1] // groups)
            sums.add(inputs.reshape(len(inputs), groups, -1)[::stride], errors[::stride])
        change, shift = sums.solve(self.fit.damping)
        weight = self.small.initializers[node.inputs[1]]
        rows = node.operator == "Conv" or bool(node.integer("transB", 0))  # [out, in]
        self._change(node, (change.mT if rows else change).reshape(weight.shape), shift.flatten())

    def _change(self, node: Node, change: Tensor | None, shift: Tensor) -> None:
        bias = self._bias(node)
        assert bias is not None
        for name, more in ((node.inputs[1], change), (bias, shift)):
            if more is not None:
                old = self.small.initializers[name]
                self.small.initializers[name] = (old.double() + more).to(old.dtype)


def _mean(parts: list[Tensor]) -> Tensor:
    """The mean over all axes but the last; float64."""
    rows = sum(part.numel() // part.shape[-1] for part in parts)
    return torch.stack([part.flatten(0, -2).sum(0, dtype=torch.float64) for part in parts]).sum(0) / rows


def _moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all axes but the last; float64."""
    mean = _mean(parts)
    return mean, _mean([(part - mean.to(part.dtype)).square() for part in parts])
