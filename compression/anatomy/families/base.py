"""What every family of models answers. No torch.

A family is one file with one object; `compression.anatomy.families` lists them. It covers a few
architectures of transformers that share their weight sites, and says two things: which keys of config.json
are kept (`rewrite`), and which tensors a model has (`parts`). The rest follows from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from compression.anatomy.families.inspecting import inspection_of
from compression.anatomy.families.reader import ConfigReader
from compression.anatomy.inspection import Inspection, Site, Task, layers_key
from compression.anatomy.offered import structure_of
from compression.anatomy.residual import (
    LAYER_NORMS,
    Norms,
    Stream,
    channel_parameters,
    narrowed,
    stream_of,
)
from compression.anatomy.structures import (
    Group,
    Kind,
    Structure,
    Widths,
    groups_of,
    head_units,
)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = Mapping[str, Any]

MAXIMUM_EXPERTS = 1024

HEAD = "the output head: kept dense, every token depends on it"
DERIVED_HEADS = (
    "its class derives the width of a head from the hidden width and the number of heads, so that fewer "
    "heads would be wider ones"
)
TABLE = "an embedding table: its rows are looked up, not multiplied"


@dataclass(frozen=True)
class Architecture:
    """One class of transformers: its `model_type` in config.json and what it is for."""

    model_type: str
    task: Task


@dataclass(frozen=True)
class Expected:
    """The tensors of a model by name: `required` ones, `optional` ones, and `buffers` that old checkpoints
    carry and no loader reads (of any type; the value is their shape, or None for any). `lists` says of each
    list of layers what its names begin with, how many layers it has and which key of config.json says so."""

    required: Shapes
    optional: Shapes
    buffers: Mapping[str, Shape | None]
    lists: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Linear:
    """A weight matrix [rows = outputs, columns = inputs] of a layer; `transposed`: stored the other way.
    `share` of the tokens multiply with it, all but for experts."""

    kind: str
    rows: int
    columns: int
    bias: bool = False
    transposed: bool = False
    share: float = 1.0

    @property
    def stored(self) -> Shape:
        """The shape of the stored tensor."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)


@dataclass(frozen=True)
class Sizes:
    """Widths and counts of a model; `context` counts tokens."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int


@dataclass(frozen=True)
class Layers:
    """A list of layers that are alike: `count` of them, whose names begin with `prefix` and their number.

    `linears` and `others` are those of one layer, by module name (`mlp.up_proj`) and by tensor name
    (`input_layernorm.weight`). `slices` are weights of a layer inside stored tensors that `others` names, by
    the name of the slice; `buffers` what old checkpoints carry in every layer. `key` of config.json says how
    many layers there are. `routers` are those of the `others` that have a row for every expert.
    """

    prefix: str
    count: int
    linears: Mapping[str, Linear]
    others: Shapes
    slices: Mapping[str, Linear] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    key: str = ""
    routers: tuple[str, ...] = ()

    def layer(self) -> dict[str, Shape]:
        """The tensors of one layer by their name inside it."""
        tensors: dict[str, Shape] = {}
        for name, linear in self.linears.items():
            tensors[f"{name}.weight"] = linear.stored
            if linear.bias:
                tensors[f"{name}.bias"] = (linear.rows,)
        return {**tensors, **self.others}

    def sites(self, first: int) -> Iterator[Site]:
        """The weight matrices of the layers, in order; the first layer has the number `first`."""
        weights = {**{f"{name}.weight": linear for name, linear in self.linears.items()}, **self.slices}
        for layer in range(self.count):
            for name, linear in weights.items():
                shape = (linear.rows, linear.columns)
                yield Site(f"{self.prefix}{layer}.{name}", first + layer, shape, linear.kind,
                           linear.transposed, linear.share)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The tensors of one model.

    Its first list of layers is said by `layer_prefix`, `linears`, `others`, `slices`, `layer_buffers` and
    `routers` (see `Layers`), with as many layers as `sizes` says; most models have no other. `further`
    lists follow it, and layers are numbered through all of them. `before` and `after` are what the model has
    outside its layers, by whole name; `optional` and `buffers` too. `kept`
    says of a weight why it is not pruned. `token_macs` and `sequence_macs` count the products outside the
    layers, `layer_macs` those for a token in one layer that no site makes; `cross_layers` and `window_macs`
    are as in `Inspection`. `image` is the shape of the images
    that a model of images takes: channels, height, width. `vocabulary` names the tensors that have a row for
    every token, of those too that a checkpoint may hold; of `token_macs`, `row_macs` are those of one row.
    """

    sizes: Sizes
    layer_prefix: str
    linears: Mapping[str, Linear]
    others: Shapes
    before: Shapes
    after: Shapes
    kept: Mapping[str, str]
    optional: Shapes = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    layer_buffers: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    has_pooler: bool = False
    tied: bool = False
    token_macs: int = 0
    sequence_macs: int = 0
    layer_macs: int = 0
    slices: Mapping[str, Linear] = field(default_factory=dict)
    image: tuple[int, int, int] | None = None
    droppable: bool = True
    further: tuple[Layers, ...] = ()
    cross_layers: int = 0
    window_macs: int = 0
    layers_key: str = ""
    routers: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    row_macs: int = 0

    def lists(self) -> tuple[Layers, ...]:
        """The lists of layers, in the order in which a model runs them."""
        first = Layers(
            self.layer_prefix, self.sizes.layers, self.linears, self.others, self.slices, self.layer_buffers,
            self.layers_key, self.routers,
        )  # fmt: skip
        return (first, *self.further)

    def sites(self) -> tuple[Site, ...]:
        """The weight matrices of all layers, in order."""
        found: list[Site] = []
        number = 0
        for layers in self.lists():
            found += layers.sites(number)
            number += layers.count
        return tuple(found)


class Family(ABC):
    """The anatomy of a family. `config` is always one that `rewrite` gave, but for `rewrite` itself.

    `name` is that which recipes list; `architectures` are the classes it covers, by their name in
    `architectures` of config.json. `neurons_key` is the key of config.json that says how wide the
    feed-forward is ("": the class derives it, so neurons cannot go), `cuts_heads` whether the classes read
    `head_dim`, so that heads can go while their width stays; of `even_heads`, only as many as divide the
    hidden width may stay. `experts_keys` names, of every architecture with experts, the key that says how
    many a layer has; as many as a token takes (`num_experts_per_tok`) stay. `keeps_hidden` says why channels
    of the residual stream cannot go ("": they can), `keeps_heads` and `keeps_neurons` why heads and neurons
    cannot, where they cannot; `keeps_equal` why all layers keep as many units ("": they need not).
    `neurons_of` says in which part of the model texts count neurons.
    `counts_from_padding`: positions are numbered from `pad_token_id` on, so it cannot change.
    """

    name: str
    architectures: Mapping[str, Architecture]
    neurons_key: str = ""
    cuts_heads: bool = False
    even_heads: frozenset[str] = frozenset()
    experts_keys: Mapping[str, str] = MappingProxyType({})
    counts_from_padding: bool = False
    keeps_hidden: str = LAYER_NORMS
    keeps_heads: str = DERIVED_HEADS
    keeps_neurons: str = ""
    keeps_equal: str = ""
    neurons_of: str = "layer"

    @abstractmethod
    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        """The keys of config.json that are kept, each checked. Raises ConfigInvalid."""

    @abstractmethod
    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        """The tensors of a model. `names` are those its files hold, to tell how they are prefixed."""

    def expected(self, config: Config, names: Iterable[str]) -> Expected:
        """The tensors that a checkpoint must and may hold."""
        parts = self.parts(config, names)
        required: dict[str, Shape] = dict(parts.before)
        buffers: dict[str, Shape | None] = dict.fromkeys(parts.buffers)
        for layers in parts.lists():
            layer = layers.layer()
            for index in range(layers.count):
                prefix = f"{layers.prefix}{index}."
                required |= {prefix + name: shape for name, shape in layer.items()}
                buffers |= dict.fromkeys(prefix + name for name in layers.buffers)
        lists = tuple((one.prefix, one.count, one.key or layers_key(config)) for one in parts.lists())
        return Expected({**required, **parts.after}, parts.optional, buffers, lists)

    def structures(self, config: Config, names: Iterable[str]) -> tuple[Structure, ...]:
        """The kinds of units that can be cut in every layer alike with a stock config."""
        names = list(names)
        parts = self.parts(config, names)
        sizes = parts.sizes
        kinds: list[Kind] = ["neuron"] if not self.why_not("neuron", config) and sizes.ffn > 1 else []
        kinds += ["head"] if not self.why_not("head", config) and head_units(sizes) > 1 else []
        kinds += ["expert"] if len(self._experts(config)) > 1 else []
        outside = {**parts.before, **parts.after}
        shapes: dict[str, Shape] = {site.name: site.shape for site in parts.sites()}
        shapes |= self.expected(config, names).required if kinds else {}
        found = [
            structure_of(
                kind, self.groups(config, names, [kind]), shapes, outside, self._counts(config, kind)
            )
            for kind in kinds
        ]
        return (*found, *self._channels(config, parts))

    def _counts(self, config: Config, kind: Kind) -> tuple[int, ...]:
        """The numbers of units that the classes take; empty: any."""
        if kind == "head" and config["architectures"][0] in self.even_heads:
            sizes = usual_sizes(config)
            each = sizes.heads // head_units(sizes)
            units = range(1, head_units(sizes) + 1)
            return tuple(n for n in units if sizes.hidden % (n * each) == 0)
        return tuple(self._experts(config)) if kind == "expert" else ()

    def why_not(self, kind: Kind, config: Config) -> str:
        """Why units of a kind cannot go from models of the family; nothing if they can."""
        if kind == "head":
            return "" if self.cuts_heads else self.keeps_heads
        if kind == "neuron":
            return "" if self.neurons_key else self.keeps_neurons
        return self.keeps_hidden if kind == "hidden" else ""

    def norms(self, config: Config) -> Norms:
        """The norms of the residual stream, of families whose channels can go."""
        raise NotImplementedError(self.keeps_hidden)

    def stream(self, config: Config, names: Iterable[str]) -> Stream:
        """The residual stream, of families whose channels can go."""
        names = list(names)
        return stream_of(self.parts(config, names), self.norms(config), names)

    def _channels(self, config: Config, parts: Parts) -> Iterator[Structure]:
        hidden, heads = parts.sizes.hidden, parts.sizes.heads
        if self.keeps_hidden or hidden < 2:
            return
        even = config["architectures"][0] in self.even_heads
        counts = tuple(range(heads, hidden + 1, heads)) if even else ()
        yield Structure("hidden", hidden, channel_parameters(parts, self.norms(config)), counts)

    def offers(self, kind: Kind) -> bool:
        """Whether units of this kind can go in models of the family, as far as their sizes allow."""
        return {
            "neuron": bool(self.neurons_key),
            "head": self.cuts_heads,
            "expert": bool(self.experts_keys),
            "hidden": not self.keeps_hidden,
        }[kind]

    def _experts(self, config: Config) -> range:
        """The numbers of experts that a layer may have: from as many as a token takes to all."""
        if not self.experts_keys:
            return range(0)
        count = config[self.experts_keys[config["architectures"][0]]]
        return range(config["num_experts_per_tok"], count + 1)

    def groups(self, config: Config, names: Iterable[str], kinds: Iterable[Kind]) -> list[Group]:
        """The units of every layer, layer by layer, in the order of the kinds."""
        names, kinds = list(names), list(kinds)
        parts = self.parts(config, names)
        parts_ = [kind for kind in kinds if kind != "hidden"]
        found: list[Group] = []
        first = 0
        for layers in parts.lists():
            found += [group for kind in parts_ for group in groups_of(layers, first, parts.sizes, kind)]
            first += layers.count
        found += [self.stream(config, names).group()] if "hidden" in kinds else []
        return sorted(found, key=lambda group: group.layer)

    def resized(self, config: Config, widths: Widths) -> dict[str, Any]:
        """The config of the model with so many units in every layer. For families that offer these kinds."""
        result = dict(config)
        if "neuron" in widths:
            result[self.neurons_key] = widths["neuron"]
        if "expert" in widths:
            result[self.experts_keys[config["architectures"][0]]] = widths["expert"]
        if "head" in widths:
            sizes = usual_sizes(config)
            group = sizes.heads // head_units(sizes)
            result["num_attention_heads"] = widths["head"] * group
            result["num_key_value_heads"] = widths["head"] if sizes.key_value_heads > 1 else 1
            result["head_dim"] = sizes.head_dim
        if "hidden" in widths:
            result = narrowed(result, widths["hidden"], usual_sizes(config).head_dim)
        return result

    def vocabulary(self, config: Config, names: Iterable[str]) -> tuple[str, ...]:
        """The stored tensors that have a row (or of a bias an element) for every token."""
        names = list(names)
        present = set(names)
        return tuple(name for name in self.parts(config, names).vocabulary if name in present)

    def inspect(self, config: Config, names: Iterable[str], has_tokenizer: bool) -> Inspection:
        """What can be cut."""
        return inspection_of(self, config, list(names), has_tokenizer)


def usual_sizes(config: Config) -> Sizes:
    """The sizes of a config that uses the usual names of transformers."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Sizes(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        key_value_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim", hidden // heads),
        ffn=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
    )


def under(prefix: str, names: Iterable[str]) -> str:
    """`prefix` if a name begins with it, else nothing: base models are saved without the name of their
    place in the whole."""
    return prefix if any(name.startswith(prefix) for name in names) else ""


def norms(width: int, *names: str, bias: bool = True) -> dict[str, Shape]:
    """The tensors of norms over `width`, with or without biases."""
    leaves = ("weight", "bias") if bias else ("weight",)
    return {f"{name}.{leaf}": (width,) for name in names for leaf in leaves}
