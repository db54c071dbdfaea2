"""How long a graph takes without some units, from measured times of its layers' shapes.

What is measured of every layer is a lattice of widths between the least that it can be cut to and its own,
multiples of `BLOCK` where there are enough: corners first, then finer, as far as there is time. Between them
times are linear in every width (tables of measured layers are those of Yang et al. 2018, NetAdapt,
arXiv:1804.03230). What a network takes beside its layers shrinks with what they give: sums, activations
and norms work on that, element by element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compression.anatomy.graph import BLOCK
from compression.errors import CompressionError
from compression.graphs.layer_shape import LayerShape
from compression.graphs.layer_shapes import LayerModel, LayerShapes
from compression.graphs.removal import Removed

FINER = (2, 3, 5, 9)
"""Widths of every axis, from coarse to fine."""
MOST_SHAPES = 600


class TimesMissing(CompressionError):
    """The time of a layer is neither measured nor between measured ones."""

    code = "measurement_failed"


Table = Mapping[str, float]
"""Seconds by the key of a shape."""


@dataclass(frozen=True)
class Ranges:
    """By shape of a layer as it is, the least widths that it can be cut to."""

    least: Mapping[LayerShape, tuple[int, ...]]

    @classmethod
    def between(cls, dense: LayerShapes, smallest: LayerShapes) -> Ranges:
        """From a graph's layers as they are and with as little as may stay."""
        found: dict[LayerShape, tuple[int, ...]] = {}
        for name, shape in dense.items():
            widths = smallest[name].widths
            found[shape] = tuple(map(min, found.get(shape, widths), widths))
        return cls(found)

    def levels(self, shape: LayerShape, fine: int) -> list[list[int]]:
        """Of every width of a layer the sizes to measure, ascending, at most `fine`."""
        pairs = zip(self.least[shape], shape.widths, strict=True)
        return [_levels(low, high, fine) for low, high in pairs]

    def lattice(self, shape: LayerShape, fine: int) -> list[LayerShape]:
        """The shapes at all combinations of these sizes."""
        return [shape.with_widths(one) for one in itertools.product(*self.levels(shape, fine))]

    def wanted(self, fineness: Iterable[int] = FINER) -> list[LayerShape]:
        """Shapes to measure, each once: all coarse lattices before the finer ones, in each those of most
        multiply-accumulates first; at most `MOST_SHAPES` and all corners."""
        found: dict[LayerShape, None] = {}
        ordered = sorted(self.least, key=lambda shape: (-shape.macs, shape.key))
        for fine in fineness:
            for shape in ordered:
                more = [one for one in self.lattice(shape, fine) if one not in found]
                if fine == FINER[0] or len(found) + len(more) <= MOST_SHAPES:
                    found |= dict.fromkeys(more)
        return list(found)

    def seconds(self, shape: LayerShape, whole: LayerShape, table: Table) -> float:
        """Seconds of a layer `whole` that is cut to `shape`: as measured, or linear in every width between
        the finest of the lattices that are measured. TimesMissing where not even the corners are."""
        if shape.key in table:
            return table[shape.key]
        for fine in reversed(FINER):
            if all(one.key in table for one in self.lattice(whole, fine)):
                return _between(shape, whole, self.levels(whole, fine), table)
        raise TimesMissing(f"no time is known of {whole.text}")


def _levels(low: int, high: int, fine: int) -> list[int]:
    block = BLOCK if high - low >= BLOCK else 1
    found = {low, high}
    for place in range(1, fine - 1):
        size = low + (high - low) * place / (fine - 1)
        found.add(min(max(round(size / block) * block, low), high))
    return sorted(found)


def _between(shape: LayerShape, whole: LayerShape, levels: Sequence[Sequence[int]], table: Table) -> float:
    """Linear in every width between its neighbours; the nearest end beyond."""
    sides: list[list[tuple[int, float]]] = []
    for width, sizes in zip(shape.widths, levels, strict=True):
        place = float(np.interp(width, sizes, range(len(sizes))))
        low = min(int(place), max(len(sizes) - 2, 0))
        sides.append([(sizes[low], 1 - (place - low)), (sizes[min(low + 1, len(sizes) - 1)], place - low)])
    total = 0.0
    for corner in itertools.product(*sides):
        weight = math.prod(share for _, share in corner)
        if weight:
            total += weight * table[whole.with_widths([size for size, _ in corner]).key]
    return total


@dataclass
class TimeModel:
    """Seconds of a graph without some units. `whole` are the measured ones of the graph as it is, `table`
    those of shapes; what is `beside` the layers is the difference of both, not below nothing."""

    layers: LayerModel
    ranges: Ranges
    table: Table
    whole: float
    _known: dict[tuple[LayerShape, LayerShape], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense = self.layers.shapes({})
        self._elements = max(sum(shape.elements for shape in self.dense.values()), 1)
        self.beside = max(0.0, self.whole - self._sum(self.dense))

    def seconds(self, removed: Removed) -> float:
        """Seconds without these units. Raises TimesMissing."""
        shapes = self.layers.shapes(removed)
        left = sum(shape.elements for shape in shapes.values()) / self._elements
        return self._sum(shapes) + self.beside * left

    def _sum(self, shapes: LayerShapes) -> float:
        return math.fsum(self._one(shape, self.dense[name]) for name, shape in shapes.items())

    def _one(self, shape: LayerShape, whole: LayerShape) -> float:
        pair = shape, whole
        if pair not in self._known:
            self._known[pair] = self.ranges.seconds(shape, whole, self.table)
        return self._known[pair]
