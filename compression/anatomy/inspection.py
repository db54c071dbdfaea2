"""What can be cut in a model, as data. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compression.anatomy.structures import Structure

Task = Literal[
    "text-generation",
    "text2text-generation",
    "text-classification",
    "feature-extraction",
    "image-classification",
    "other",
]

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

# GPT-2, BLOOM and Falcon call their list of layers `h`, T5 `block` (each of which is a list `layer`).
# Where a model has several lists, this is the number in one of them.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.([0-9]{1,5})\.")
_BUFFER = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias|position_ids|token_type_ids"
    r"|attention\.self\.relative_position_index|EncDecAttention\.relative_attention_bias\.weight)$"
)
TIED = "tied to the embedding table"
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Site:
    """A weight matrix that may be pruned. `name` is that of the stored tensor, `shape` is [out, in], `kind`
    is what it does in its layer (such as query, output, gate, up, down; query_key_value and gate_up hold
    several). A `transposed` one is stored as [in, out]. `share` is the share of tokens that multiply with it:
    below 1 for an expert, of which each token takes a few of many, and for stages with fewer tokens than the
    first; above 1 where windows are filled up. An expert's weight may be a slice of a
    stored tensor; `anatomy.slices` says how it is named then."""

    name: str
    layer: int
    shape: tuple[int, int]
    kind: str
    transposed: bool = False
    share: float = 1.0

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def extents(self) -> tuple[int, ...]:
        """Outputs and inputs, and of a convolution the sizes of its kernel."""
        return self.shape


@dataclass(frozen=True)
class Inspection:
    """The anatomy of a model. Sizes count elements, `context` counts tokens.

    `layers` are numbered through all lists of layers that a model has (an encoder's before its decoder's, one
    stage's before the next one's); where there are several, `hidden` to `ffn`, `layer_prefix`,
    `layer_parameters` and `layer_bytes` are of the first list.
    `layer_prefix` is what the names of a layer's tensors begin with before the layer's number
    ("model.layers.", "bert.encoder.layer."). `parameters` and `bytes` are those of the whole model as
    stored (a tied head once, headers and buffers not), `layer_parameters` and `layer_bytes` those of one
    layer, `prunable_parameters` those of all sites; `other_bytes` are what the weight files hold besides
    (headers, old buffers, a stored copy of a tied head); `dtype` is the type in which the model is meant
    to be loaded. `token_macs` and `sequence_macs` are the multiply-accumulates outside the layers, for every
    token and once a sequence (of images: once an image); `layer_macs` those of every layer and token that no
    site makes (routers). Every layer attends to its own sequence, and `cross_layers` of them to another one
    too (a decoder's to its encoder); where attention is within windows, `window_macs` are all that it makes
    for an image.
    A model of images takes them in the shape `image` (channels, height, width), and `context` counts the
    patches of one with the tokens that go before them; `preprocessing` is how images become that (a complete
    `compression.preprocessing.Preprocessing` as JSON), None where the model's file asks for unknown steps.
    `structures` are the units that can be cut in every layer alike, so that the result has a stock config;
    `structure_limits` say why not units of another `kind` (`reason`).
    `layer_heads` are the query heads of each layer where they differ (empty: `heads` in all).
    `formats` are those that the model can be written in; `format_limits` say why not in another one
    (`format`, `reason`), or not in one of them once it is cut by some `granularities` (empty: by any).
    `batch_norms` counts those of a graph; its own inspection has all operators, so `to_json` leaves it out.
    `row_parameters` are the elements that one token of the vocabulary has (of a tied head none of its own,
    biases too), `row_macs` its part of `token_macs`.
    """

    family: str
    architecture: str
    task: Task
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int
    tied_embeddings: bool
    has_tokenizer: bool
    labels: tuple[str, ...] | None
    has_pooler: bool
    layer_prefix: str
    layer_parameters: int
    sites: tuple[Site, ...]
    prunable_parameters: int
    granularities: tuple[str, ...]
    not_prunable: tuple[Mapping[str, str], ...] = field(default=())
    token_macs: int = 0
    sequence_macs: int = 0
    layer_macs: int = 0
    cross_layers: int = 0
    window_macs: int = 0
    image: tuple[int, int, int] | None = None
    preprocessing: Mapping[str, Any] | None = None
    parameters: int = 0
    bytes: int = 0
    layer_bytes: int = 0
    dtype: str = "float32"
    other_bytes: int = 0
    structures: tuple[Structure, ...] = ()
    layer_heads: tuple[int, ...] = ()
    formats: tuple[str, ...] = ("safetensors",)
    format_limits: tuple[Mapping[str, Any], ...] = ()
    row_parameters: int = 0
    row_macs: int = 0
    structure_limits: tuple[Mapping[str, str], ...] = ()
    batch_norms: int = 0

    @property
    def tied(self) -> tuple[str, ...]:
        """The name of the embedding table and those of what is tied to it (heads, copies); empty if nothing
        is."""
        copies = tuple(item["name"] for item in self.not_prunable if item["reason"] == TIED)
        return (self.not_prunable[0]["name"], *copies) if copies else ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data; `from_json` reads it back."""
        data = asdict(self)
        del data["batch_norms"]
        for name in ("labels", "granularities", "image", "formats", "layer_heads"):
            data[name] = None if data[name] is None else list(data[name])
        data["sites"] = [{**asdict(site), "shape": list(site.shape)} for site in self.sites]
        data["not_prunable"] = [dict(item) for item in self.not_prunable]
        data["structures"] = [{**asdict(one), "counts": list(one.counts)} for one in self.structures]
        for name in ("format_limits", "structure_limits"):
            data[name] = [dict(one) for one in getattr(self, name)]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Inspection:
        """Reads what `to_json` gave."""
        values = dict(data)
        values["labels"] = None if values["labels"] is None else tuple(values["labels"])
        image = values.get("image")
        values["image"] = None if image is None else tuple(image)
        values["layer_heads"] = tuple(values.get("layer_heads", ()))
        values["granularities"] = tuple(values["granularities"])
        values["sites"] = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in values["sites"])
        values["not_prunable"] = tuple(dict(item) for item in values["not_prunable"])
        values["structures"] = tuple(
            Structure(**{**one, "counts": tuple(one["counts"])}) for one in values.get("structures", ())
        )
        values["formats"] = tuple(values.get("formats", ("safetensors",)))
        for name in ("format_limits", "structure_limits"):
            values[name] = tuple(dict(one) for one in values.get(name, ()))
        return cls(**values)


def layers_key(config: Mapping[str, Any]) -> str:
    """The key under which a config says how many layers there are. Raises KeyError if it does not say."""
    for key in _LAYER_KEYS:
        if key in config:
            return key
    raise KeyError(_LAYER_KEYS[0])


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is a buffer of an old checkpoint, which no loader reads, by its name."""
    return _BUFFER.search(name) is not None


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, by its name; None for embeddings, heads and final
    norms."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def with_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer. Raises ValueError if the tensor belongs to no layer."""
    found = _LAYER.search(name)
    if found is None:
        raise ValueError(f"{name!r} belongs to no layer")
    return f"{name[: found.start(1)]}{layer}{name[found.end(1) :]}"


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)
