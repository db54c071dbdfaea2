"""The residual stream of a decoder: which stored tensors have an axis of its width. No torch.

A unit of the kind "hidden" is one channel of that stream, the same in all layers: a column of the embedding
table and of every weight that reads the stream (query, key, value, gate, up, routers, the head), a row of
every weight that writes to it (output, down) with its bias, an element of every norm over it.

An RMS norm over D channels, of which only d are not zero, divides by sqrt(S / D + eps), S being their sum of
squares; a norm over those d alone by sqrt(S / d + eps'). With eps' = eps D / d the second is sqrt(D / d)
times the first, so that the norm's weight times sqrt(D / d), the `gain`, gives the same outputs. Norms over
the width of a head take their epsilon from the same key of config.json: weights and biases that lead into
them are multiplied with the gain too, so that it means as little as before. Embeddings that the class
multiplies with the root of the hidden width are multiplied with the gain; where the head is tied to them,
the last norm's weight stays as it is. A layer norm subtracts the mean over all channels, also from those that
are zero, so that no such rule exists for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression.anatomy.slices import stored_tensor
from compression.anatomy.structures import Group, Slice

if TYPE_CHECKING:
    from compression.anatomy.families.base import Layers, Linear, Parts

LAYER_NORMS = (
    "its layer norms subtract the mean over all channels, so that no smaller model answers as one whose "
    "channels are zero, and its class derives the width of a head from the hidden width"
)
TWO_NORMS = (
    "its layers norm what attention and feed-forward give before they add it, channel by channel, which no "
    "stock norm does in a turned basis"
)
EPSILON = "rms_norm_eps"
_READERS = ("query", "key", "value", "gate", "up")
_WRITERS = ("output", "down")
_SKIPS = ("attention_skip.weight", "feed_forward_skip.weight")


@dataclass(frozen=True)
class Norms:
    """The RMS norms of a layer by module name: those that `attention` and `feed_forward` read, and those
    `after` them, of what is added to the stream. `head_linears` lead into norms over the width of a head
    with the same epsilon. A norm multiplies with its weight plus `offset`; `scaled`: embeddings are
    multiplied with the root of the hidden width."""

    attention: str = "input_layernorm"
    feed_forward: str = "post_attention_layernorm"
    after: tuple[str, ...] = ()
    head_linears: tuple[str, ...] = ()
    offset: float = 0.0
    scaled: bool = False


@dataclass(frozen=True)
class Axis:
    """The axis of a stored tensor that has the width of the stream. `role`: "table", "head", "norm" (it is
    read through), "after" (a norm of what is added), "read" or "write"; `norm` is the stored norm that a
    "read" or "head" reads through. `layer` is None outside the layers."""

    tensor: str
    axis: int
    role: str
    layer: int | None
    norm: str = ""


@dataclass(frozen=True)
class Stream:
    """The residual stream of a model: `axes` are all its stored tensors, layer by layer, those outside the
    layers last; `gained` are the weights and biases that lead into norms over the width of a head. A tied
    head is among the axes only where files store it; `head` is its name in either case."""

    hidden: int
    axes: tuple[Axis, ...]
    gained: tuple[str, ...]
    table: str
    head: str
    final: str
    tied: bool
    offset: float
    scaled: bool
    layers: int

    def group(self) -> Group:
        """The channels as units: one group for all layers."""
        slices = tuple(Slice(one.tensor, one.axis, 0, 1, one.tensor) for one in self.axes)
        return Group("hidden", 0, self.hidden, slices)

    def of_layer(self, layer: int | None) -> list[Axis]:
        """The axes of one layer, or of what is outside all layers."""
        return [one for one in self.axes if one.layer == layer]

    def changed(self, layer: int | None) -> list[str]:
        """The stored tensors of one layer (or of none) that a change of the width or of the basis touches."""
        prefix = "" if layer is None else _prefix(self.of_layer(layer))
        more = [name for name in self.gained if layer is not None and name.startswith(prefix)]
        return list(dict.fromkeys([*(one.tensor for one in self.of_layer(layer)), *more]))

    def skips(self, layer: int) -> tuple[str, str]:
        """The names of the weights on a layer's skip connections, past its attention and past its
        feed-forward, where each norm reads the stream in a basis of its own."""
        first, second = _SKIPS
        prefix = _prefix(self.of_layer(layer))
        return prefix + first, prefix + second

    def read_norms(self, layer: int | None) -> list[str]:
        """The stored norms that weights of one layer (or the head) read through."""
        return [one.tensor for one in self.of_layer(layer) if one.role == "norm"]


def is_skip(name: str) -> bool:
    """Whether a tensor is called like a weight on a skip connection."""
    return name.endswith(tuple("." + leaf for leaf in _SKIPS))


def _prefix(axes: list[Axis]) -> str:
    """What all tensors of a layer begin with, its number and a dot at the end."""
    name, layer = axes[0].tensor, f".{axes[0].layer}."
    return name[: name.index(layer) + len(layer)]


def stream_of(parts: Parts, norms: Norms, names: Iterable[str]) -> Stream:
    """The residual stream of a decoder with one list of layers; `names` are those its files hold."""
    (layers,) = parts.lists()
    present = set(names)
    table, head = parts.vocabulary[:2]
    final = next(name for name in parts.after if name.endswith("norm.weight"))
    axes = [axis for number in range(layers.count) for axis in _axes(layers, norms, number, parts)]
    axes += [Axis(table, 1, "table", None), Axis(final, 0, "norm", None)]
    if not parts.tied or head in present:
        axes.append(Axis(head, 1, "head", None, final))
    gained = [
        f"{layers.prefix}{number}.{name}.{leaf}"
        for number in range(layers.count)
        for name in norms.head_linears
        for leaf in ("weight", *(["bias"] if layers.linears[name].bias else []))
    ]
    return Stream(
        parts.sizes.hidden, tuple(axes), tuple(gained), table, head, final, parts.tied, norms.offset,
        norms.scaled, layers.count,
    )  # fmt: skip


def _axes(layers: Layers, norms: Norms, number: int, parts: Parts) -> Iterator[Axis]:
    prefix, hidden = f"{layers.prefix}{number}.", parts.sizes.hidden
    reads = {"query": norms.attention, "key": norms.attention, "value": norms.attention}
    for name, linear in layers.linears.items():
        norm = f"{prefix}{reads.get(linear.kind, norms.feed_forward)}.weight"
        yield _axis(f"{prefix}{name}.weight", linear, number, norm)
        if linear.bias and linear.kind in _WRITERS:
            yield Axis(f"{prefix}{name}.bias", 0, "write", number)
    together = {stored_tensor(name): linear.kind in _WRITERS for name, linear in layers.slices.items()}
    fed = f"{prefix}{norms.feed_forward}.weight"
    for name, shape in layers.others.items():
        place = prefix + name
        if name in together:
            yield Axis(place, 1, "write", number) if together[name] else Axis(place, 2, "read", number, fed)
        elif len(shape) == 2 and shape[1] == hidden:
            yield Axis(place, 1, "read", number, fed)
        elif name.removesuffix(".weight") in (norms.attention, norms.feed_forward):
            yield Axis(place, 0, "norm", number)
        elif name.removesuffix(".weight") in norms.after:
            yield Axis(place, 0, "after", number)


def _axis(place: str, linear: Linear, number: int, norm: str) -> Axis:
    if linear.kind in _WRITERS:
        return Axis(place, 1 if linear.transposed else 0, "write", number)
    assert linear.kind in _READERS, "weights that hold several kinds have no residual stream described"
    return Axis(place, 0 if linear.transposed else 1, "read", number, norm)


def channel_parameters(parts: Parts, norms: Norms) -> int:
    """Elements that one channel has in one layer."""
    (layers,) = parts.lists()
    shapes = layers.layer()
    total = 0
    for axis in _axes(layers, norms, 0, parts):
        shape = shapes[axis.tensor.removeprefix(f"{layers.prefix}0.")]
        size = 1
        for number, length in enumerate(shape):
            size *= 1 if number == axis.axis else length
        total += size
    return total


def narrowed(config: Mapping[str, Any], width: int, head_dim: int) -> dict[str, Any]:
    """The config with a residual stream of this width, heads as wide as before and the epsilon that goes with
    the gain."""
    dense = config["hidden_size"]
    return {
        **config,
        "hidden_size": width,
        "head_dim": head_dim,
        EPSILON: config[EPSILON] if width == dense else config[EPSILON] * dense / width,
    }
