"""What can be cut in every layer alike: FFN neurons, attention heads, experts and channels of the residual
stream, as slices of stored tensors or as tensors of their own. No torch.

A unit of the kind "neuron" is one row of what comes up into the feed-forward (and of its gate) with the
column that leads down from it. A unit of the kind "head" is one key-value head with all query heads that read
it; where a single key-value head serves all query heads, it stays and every query head is a unit. Norms over
the width of a head, which all heads share, are not cut. What lies between the two (rotary positions, soft
caps, windows) does not depend on the number of heads.

The neurons of a mixture of experts belong to one expert each: every expert loses as many, others of its own,
and an expert that all tokens share loses the same part of its neurons. Where an encoder has a decoder, the
heads of its second attention are units of their own. So one layer may have several groups of a kind
(`Group.part`).

A unit of the kind "expert" is all that one expert of a mixture is made of, with the row of the router that
sends tokens to it. Where files store the experts of a layer together, these are slices along the first axis;
where every weight of an expert has a tensor of its own, the unit owns whole tensors, and those that stay are
renumbered. An expert that all tokens share is no unit.

A unit of the kind "hidden" is one channel of the residual stream, in all layers at once
(`anatomy.residual`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compression.anatomy.slices import expert_of, stored_tensor

if TYPE_CHECKING:
    from compression.anatomy.families.base import Layers, Linear, Sizes

Kind = Literal["neuron", "head", "expert", "hidden"]
Widths = Mapping[str, int]
"""How many units stay in every layer, by kind."""

GRANULARITIES: dict[str, tuple[Kind, ...]] = {
    "neuron": ("neuron",),
    "head": ("head",),
    "neuron+head": ("neuron", "head"),
    "expert": ("expert",),
    "hidden": ("hidden",),
    "neuron+hidden": ("neuron", "hidden"),
    "neuron+head+hidden": ("neuron", "head", "hidden"),
}
"""The kinds of unit that a granularity removes."""

ROWS: dict[Kind, frozenset[str]] = {
    "neuron": frozenset({"gate", "up", "gate_up"}),
    "head": frozenset({"query", "key", "value"}),
}
"""Kinds of weights whose outputs belong to units, of the kinds that are parts of weights."""

COLUMNS: dict[Kind, str] = {"neuron": "down", "head": "output"}
"""The kind of weight whose inputs belong to units, of the same."""


CROSS = "cross_"
"""What kinds of weights begin with that attend to another sequence (a decoder's to its encoder)."""


def unit_word(kind: str) -> str:
    """How texts call one unit."""
    return "hidden channel" if kind == "hidden" else kind


@dataclass(frozen=True)
class Slice:
    """Unit i owns the indices offset + i * size ... offset + (i + 1) * size of a stored tensor along its
    stored axis. `site` is the weight that the tensor belongs to (its own name, or that of the weight of a
    bias)."""

    tensor: str
    axis: int
    offset: int
    size: int
    site: str

    @property
    def bias(self) -> bool:
        """Whether the tensor is a bias."""
        return self.tensor != self.site


@dataclass(frozen=True)
class Group:
    """The units of one kind in one layer (hidden channels: in all, as those of layer 0). `output` is the name
    of the weight whose inputs they are ("" for experts and hidden channels). `owned` are the tensors that
    each unit owns whole, in the same order for all; of those that stay, the n-th takes the names of unit
    n.

    A layer with several groups of a kind tells them apart by `part`: the number of an expert, "shared" for
    one that all tokens share, "cross" for a decoder's second attention. Where a structure has another
    `count` than the group, it is `of`: of k units that stay of these, the group keeps k * count / of. Groups
    that are `bound` by the same word keep the same units."""

    kind: Kind
    layer: int
    count: int
    slices: tuple[Slice, ...]
    output: str = ""
    owned: tuple[tuple[str, ...], ...] = ()
    part: str = ""
    of: int = 0
    bound: str = ""

    @property
    def name(self) -> str:
        """Such as "neuron.3", or "neuron.3.shared": unique within a model."""
        return f"{self.kind}.{self.layer}" + (f".{self.part}" if self.part else "")

    @property
    def expert(self) -> int | None:
        """The number of the expert that the units are parts of; None for units of no expert."""
        return int(self.part) if self.part.isdecimal() else None

    def kept(self, width: int) -> int:
        """How many units stay where a structure keeps `width`."""
        return width * self.count // (self.of or self.count)

    @property
    def width(self) -> int:
        """How many inputs of the weight `output` a unit is."""
        return next(one.size for one in self.slices if one.tensor == self.output)


@dataclass(frozen=True)
class Structure:
    """What an inspection says of one kind of unit: every layer has `count` of them, each with `parameters`
    elements in a layer. `counts` are the numbers that may stay; empty: any from 1 on.

    Where layers are not alike, or parts of a layer have several units to one of these, `count` and
    `parameters` are those of the first layer (or expert), and `whole` is how many elements all units of all
    layers have; 0: `count` * `parameters` in each layer."""

    kind: Kind
    count: int
    parameters: int
    counts: tuple[int, ...] = ()
    whole: int = 0

    def elements(self, kept: int, layers: int) -> int:
        """Elements of so many units in all layers together."""
        return (self.whole or self.count * self.parameters * layers) * kept // self.count


def head_units(sizes: Sizes) -> int:
    """How many units of the kind "head" a layer has."""
    return sizes.key_value_heads if sizes.key_value_heads > 1 else sizes.heads


def groups_of(layers: Layers, first: int, sizes: Sizes, kind: Kind) -> Iterator[Group]:
    """The groups of one kind of a list of layers, the first of which has the number `first`; `sizes` are
    those of the model's first list."""
    if kind == "expert":
        yield from (_experts(layers, number, first + number) for number in range(layers.count))
        return
    whole = sizes.ffn if kind == "neuron" else head_units(sizes)
    parts = _parts(layers, sizes, kind)
    for number in range(layers.count):
        for part, weights in parts.items():
            columns = next(one.columns for one in weights.values() if plain(one.kind) == COLUMNS[kind])
            count = columns if kind == "neuron" else whole
            slices, output = _slices(f"{layers.prefix}{number}.", weights, kind, count)
            of = 0 if count == whole else whole
            yield Group(kind, first + number, count, slices, output, part=part, of=of)


def plain(kind: str) -> str:
    """The kind of a weight, whichever sequence it attends to."""
    return kind.removeprefix(CROSS)


def _parts(layers: Layers, sizes: Sizes, kind: Kind) -> dict[str, dict[str, Linear]]:
    """The weights of a layer that units of a kind are made of, by stored name, for each part of the layer."""
    found: dict[str, dict[str, Linear]] = {}
    weights = {f"{name}.weight": linear for name, linear in layers.linears.items()} | dict(layers.slices)
    for name, linear in weights.items():
        mine = plain(linear.kind) in (*ROWS[kind], COLUMNS[kind])
        if mine and not _shared(linear, sizes):
            found.setdefault(_part(name, linear), {})[name] = linear
    return found


def _part(name: str, linear: Linear) -> str:
    expert = expert_of(f".{name}")
    if expert is not None:
        return str(expert)
    if linear.kind.startswith(CROSS):
        return "cross"
    return "shared" if ".shared_expert." in f".{name}" else ""


def _slices(
    prefix: str, weights: Mapping[str, Linear], kind: Kind, count: int
) -> tuple[tuple[Slice, ...], str]:
    """What units own of these weights, and the name of the weight that reads them."""
    slices: list[Slice] = []
    output = ""
    for name, linear in weights.items():
        place = prefix + name
        if plain(linear.kind) == COLUMNS[kind]:
            output = place
            slices.append(Slice(place, 0 if linear.transposed else 1, 0, linear.columns // count, place))
        else:
            slices += _rows(linear, place, count)
    return tuple(slices), output


def _experts(layers: Layers, number: int, layer: int) -> Group:
    prefix = f"{layers.prefix}{number}."
    count = layers.others[layers.routers[0]][0]
    owned: list[list[str]] = [[] for _ in range(count)]
    for name in layers.linears:
        expert = expert_of(f"{prefix}{name}.weight")
        if expert is not None:
            owned[expert].append(f"{prefix}{name}.weight")
    together = dict.fromkeys(stored_tensor(name) for name in layers.slices)
    names = [prefix + name for name in (*together, *layers.routers)]
    slices = tuple(Slice(name, 0, 0, 1, name) for name in names)
    return Group("expert", layer, count, slices, owned=tuple(map(tuple, owned)) if any(owned) else ())


def _shared(linear: Linear, sizes: Sizes) -> bool:
    """Whether a weight makes the keys or values that all units read."""
    return linear.kind in ("key", "value") and sizes.key_value_heads == 1 < sizes.heads


def _rows(linear: Linear, site: str, count: int) -> Iterator[Slice]:
    parts = 2 if linear.kind == "gate_up" else 1
    size = linear.rows // (parts * count)
    for part in range(parts):
        yield Slice(site, 1 if linear.transposed else 0, part * count * size, size, site)
        if linear.bias:
            bias = f"{site.removesuffix('weight')}bias"
            yield Slice(bias, 0, part * count * size, size, site)


def unit_parameters(shapes: Mapping[str, tuple[int, ...]], group: Group, without: Container[str] = ()) -> int:
    """Elements of one unit of a group, weights and biases, by the shapes of what it is cut from, but for the
    tensors `without`."""
    total = sum(math.prod(shapes[name]) for name in (group.owned[0] if group.owned else ()))
    for one in group.slices:
        if one.tensor not in without:
            shape = shapes[one.tensor]
            total += one.size * (math.prod(shape) // shape[one.axis])
    return total
