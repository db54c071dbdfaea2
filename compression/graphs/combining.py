"""What went as linear combinations of what stays, from weights and BatchNorm statistics alone.

If a removed channel is close to a linear combination of channels of its group that stay, its readers can take
the combination over: W'_k = W_k + sum over removed r of S_rk W_r. S is the closed-form least squares of the
filters that make the channels, scaled and shifted by the BatchNorm behind them (UDFC, Bai et al. 2023,
arXiv:2308.07209: no data, no training). Filters of a BatchNorm that the exporter folded into its convolution
are scaled already, so both forms give the same. Functions between maker and reader (ReLU) are taken to keep
the combination, as in the paper; that is exact where they are linear.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, Group, Site
from compression.graphs.gates import Gates, gated
from compression.graphs.graph import Graph, Node
from compression.graphs.reconstruction import Reconstructed
from compression.graphs.removal import Removed

Floats = NDArray[np.float64]
COMBINATION = "combination"
DAMPING = 0.01
"""Share of the mean squared norm of the filters that stay, added to all of them in the least squares."""
ADDING = {"Add", "Concat", "Sum"}


def combine(anatomy: Anatomy, removed: Removed, damping: float = DAMPING) -> Reconstructed:
    """The graph without the units `removed`, whose readers take over what went as combinations of what stays;
    by the first output of a reader that it was done, or why not. CutImpossible as of `cut`."""
    work = _Combining(anatomy)
    for name, units in removed.items():
        gone = sorted(units)
        if gone:
            work.take_over(anatomy.group(name), gone, damping)
    graph = replace(anatomy.graph, initializers=work.arrays)
    return Reconstructed(cut(replace(anatomy, graph=graph), removed), work.fitted, work.left)


class _Combining:
    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.graph: Graph = anatomy.graph
        self.arrays = dict(anatomy.graph.initializers)
        self.readers = self.graph.consumers()
        self.gates: Gates = gated(anatomy)
        self.nodes = self.gates.graph.producers()
        self.fitted: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def take_over(self, group: Group, gone: list[int], damping: float) -> None:
        """Change the weights that read a group."""
        found = self._read(group)
        values = [node.value for node in found]
        why = self._unreadable(group, found)
        filters = None if why else self._filters(group)
        if why or filters is None:
            why = why or "its channels are not made by filters that can be compared"
            self.left.update({value: why for value in values if value not in self.fitted})
            return
        kept = np.setdiff1d(np.arange(group.units), gone)
        shares = combinations(filters, gone, kept, damping)
        for site in group.sites:
            if site.role == "consumer":
                self._pass_on(site, np.array(gone), kept, shares)
        for value in values:
            self.fitted[value] = COMBINATION
            self.left.pop(value, None)

    def _read(self, group: Group) -> list[Node]:
        """The nodes that sum over units of a group."""
        numbers = self.gates.of(group)
        found = {
            gate.reader: self.nodes[gate.reader]
            for gate in self.gates.gates
            if ((gate.units >= numbers.start) & (gate.units < numbers.stop)).any()
        }
        return list(found.values())

    def _unreadable(self, group: Group, readers: list[Node]) -> str:
        """Why combinations cannot be taken over by the readers of a group; empty if they can."""
        if group.heads:
            return "its inputs are heads, which do not add up"
        if group.name in self.gates.silent:
            return self.gates.silent[group.name]
        for node in readers:
            name = node.input(1)
            plain = name in self.arrays and len(self.readers.get(name, [])) == 1 and _plain(node)
            if not plain or (node.operator == "MatMul" and self.arrays[name].ndim != 2):
                return f"{node.label} reads its channels with no weight of its own for each"
        for node in self.graph.nodes:
            carriers = [
                name for name in node.inputs if name not in self.arrays and self._carries(name, group)
            ]
            if len(carriers) > 1 and node.operator not in ADDING:
                return f"{node.label} joins its channels otherwise than by a sum"
        return ""

    def _carries(self, name: str, group: Group) -> bool:
        axes = self.anatomy.axes.get(name, ())
        return any(ids is not None and bool(np.isin(group.labels, ids).any()) for ids in axes)

    def _filters(self, group: Group) -> Floats | None:
        """By unit, what makes it, as a row: weights and shift of every tensor; None where something else
        scales or makes units."""
        rows, used = [], set()
        sites = {site.initializer: site for site in group.sites if site.role != "consumer"}
        for site in sites.values():
            readers = self.readers.get(site.initializer, [])
            if self.arrays[site.initializer].ndim < 2 or len(readers) != 1:
                continue
            node, place = readers[0]
            if place != 1 or not _plain(node) or not _makes(node, site):
                continue
            filters, shift, behind = self._scaled(node, site.axis)
            used |= {site.initializer, *behind}
            rows += [filters[site.places].reshape(group.units, -1), shift[site.places]]
        return np.concatenate(rows, 1) if rows and set(sites) <= used else None

    def _scaled(self, node: Node, axis: int) -> tuple[Floats, Floats, set[str]]:
        """The filters of a node [channels, weights] and their shifts with all constant sums, scales and
        BatchNorms right behind it; the initializers of these."""
        array = np.moveaxis(self.graph.initializers[node.inputs[1]].astype(np.float64), axis, 0)
        filters = array.reshape(len(array), -1)
        shift, used = np.zeros(len(filters)), set()
        if node.input(2):
            shift = shift + self._vector(node.inputs[2], len(filters))
            used.add(node.inputs[2])
        value = node.value
        while len(self.readers.get(value, [])) == 1:
            behind = self.readers[value][0][0]
            constants = [name for name in behind.inputs if name and name != value]
            if not all(name in self.arrays for name in constants):
                break
            if behind.operator == "BatchNormalization":
                scale, bias, mean, variance = (self._vector(one, len(filters)) for one in constants)
                root: Floats = np.sqrt(variance + behind.number("epsilon", 1e-5))
                factor: Floats = scale / root
                filters, shift = filters * factor[:, None], (shift - mean) * factor + bias
            elif behind.operator == "Add" and self._whole(constants[0], len(filters)):
                shift = shift + self._vector(constants[0], len(filters))
            elif behind.operator == "Mul" and self._whole(constants[0], len(filters)):
                scale = self._vector(constants[0], len(filters))
                filters, shift = filters * scale[:, None], shift * scale
            else:
                break
            used.update(constants)
            value = behind.value
        return filters, shift, used

    def _whole(self, name: str, channels: int) -> bool:
        return self.graph.initializers[name].size in (1, channels)

    def _vector(self, name: str, channels: int) -> Floats:
        array = self.graph.initializers[name].astype(np.float64).reshape(-1)
        found: Floats = np.broadcast_to(array, (channels,)).copy()
        return found

    def _pass_on(self, site: Site, gone: NDArray[np.int64], kept: NDArray[np.int64], shares: Floats) -> None:
        """Add what read the units that went to what reads those that stay."""
        dense = self.graph.initializers[site.initializer]
        before = np.moveaxis(dense.astype(np.float64), site.axis, 0)
        now = np.moveaxis(self.arrays[site.initializer].astype(np.float64), site.axis, 0).copy()
        for place in range(site.places.shape[1]):
            read = before[site.places[gone, place]]
            now[site.places[kept, place]] += np.einsum("rk,r...->k...", shares, read)
        self.arrays[site.initializer] = np.moveaxis(now, 0, site.axis).astype(dense.dtype)


def combinations(filters: Floats, gone: list[int], kept: NDArray[np.int64], damping: float) -> Floats:
    """S [gone, kept] with the least ||F_gone - S F_kept||^2 + damping * m * ||S||^2, m the mean squared norm
    of F_kept, rows being filters."""
    staying = filters[kept]
    gram = staying @ staying.T
    ridge = max(damping, 1e-9) * float(np.trace(gram)) / len(kept) + np.finfo(np.float64).tiny
    shares = np.linalg.solve(gram + ridge * np.eye(len(kept)), staying @ filters[gone].T).T
    return np.asarray(shares, dtype=np.float64)


def _plain(node: Node) -> bool:
    """Whether a node multiplies by a weight, its second input, and does nothing else."""
    if node.operator == "Conv":
        return node.integer("group", 1) == 1
    if node.operator == "Gemm":
        return node.number("alpha", 1) == node.number("beta", 1) == 1 and not node.integer("transA", 0)
    return node.operator == "MatMul"


def _makes(node: Node, site: Site) -> bool:
    rows = node.operator == "Conv" or bool(node.integer("transB", 0))  # [out, in]
    return site.axis == (0 if rows else 1)
