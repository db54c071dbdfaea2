"""What a graph costs whose units are there in part: a function of gates that gradients flow through."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compression.graphs.costs import COUNTED
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import trained_initializers


class SoftCosts:
    """The share of the costs that is left: sizes of axes are sums over gates between 0 and 1, [units] in the
    order of the anatomy's groups, and costs are counted from these as from whole sizes. Gates of zeros and
    ones give what `CostModel` gives."""

    def __init__(self, anatomy: Anatomy, measure: Literal["macs", "parameters"]) -> None:
        self._units = sum(group.units for group in anatomy.groups)
        self._anatomy = anatomy
        self._nodes = [node for node in anatomy.graph.nodes if measure == "macs" and node.operator in COUNTED]
        self._weights = sorted(trained_initializers(anatomy.graph)) if measure == "parameters" else []
        named = {name for node in self._nodes for name in (*node.inputs, *node.outputs) if name}
        self._names = sorted(named | set(self._weights))
        numbers = np.full(anatomy.label_count, self._units, dtype=np.int64)
        numbers[np.concatenate([group.labels for group in anatomy.groups])] = np.arange(self._units)
        self._places: dict[tuple[str, int], int] = {}
        rows: list[NDArray[np.int64]] = []
        for name in self._names:
            for axis, ids in enumerate(anatomy.axes.get(name, ())):
                if ids is not None and (numbers[ids] < self._units).any():
                    self._places[name, axis] = len(rows)
                    rows.append(np.bincount(numbers[ids], minlength=self._units + 1))
        counts = np.stack(rows) if rows else np.zeros((0, self._units + 1))
        self._counts = torch.from_numpy(counts.astype(np.float64))
        self._dense = float(self._total(torch.ones(self._units, dtype=torch.float64)))

    def ratio(self, gates: Tensor) -> Tensor:
        """The costs with these gates [units] over those of the dense graph; a scalar."""
        return self._total(gates.double()) / self._dense

    def _total(self, gates: Tensor) -> Tensor:
        sizes = self._counts @ torch.cat([gates, torch.ones(1, dtype=gates.dtype)])
        shapes: dict[str, Any] = {}
        for name in self._names:
            plain = self._anatomy.probe.shape(name)
            shapes[name] = tuple(
                sizes[self._places[name, axis]] if (name, axis) in self._places else torch.tensor(float(size))
                for axis, size in enumerate(plain)
            )
        parts: list[Any] = [COUNTED[node.operator](node, shapes) for node in self._nodes]
        parts += [torch.stack([size.double() for size in shapes[name]]).prod() for name in self._weights]
        return torch.stack([torch.as_tensor(part, dtype=torch.float64) for part in parts]).sum()
