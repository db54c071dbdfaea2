"""What every family of models answers. No torch.

A family is one file with one object; `compression.anatomy.families` lists them. It covers a few
architectures of transformers that share their weight sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from compression.anatomy.families.reader import ConfigReader
from compression.anatomy.inspection import Inspection, Site, Task

Shape = tuple[int, ...]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One class of transformers: its `model_type` in config.json and what it is for."""

    model_type: str
    task: Task


@dataclass(frozen=True)
class Expected:
    """The tensors of a model by name: `required` ones, `optional` ones, and `buffers` that old checkpoints
    carry and
    no loader reads (of any type; the value is their shape, or None for any)."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape]
    buffers: Mapping[str, Shape | None]


class Family(Protocol):
    """The anatomy of a family. `config` is always one that `rewrite` gave, but for `rewrite` itself."""

    @property
    def name(self) -> str:
        """Name of the family, as recipes list it."""
        ...

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The classes it covers, by their name in `architectures` of config.json."""
        ...

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        """The keys of config.json that are kept, each checked. Raises ConfigInvalid."""
        ...

    def expected(self, config: Config, names: Iterable[str]) -> Expected:
        """The tensors that a checkpoint must and may hold. `names` are those it holds, to tell how it
        prefixes them."""
        ...

    def inspect(self, config: Config, names: Iterable[str], has_tokenizer: bool) -> Inspection:
        """What can be cut."""
        ...

    def macs(self, inspection: Inspection, sequence_length: int) -> Macs:
        """Multiply-accumulates of one forward pass over one sequence."""
        ...


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the matrix products of one forward pass over one sequence of `tokens` tokens.

    `sites` are the prunable weights (tokens x size each), `attention` the scores and weighted values of all
    layers (the full square, whatever the mask), `head` what follows the last layer. Embedding look-ups,
    norms, activations, biases and rotary positions count nothing.
    """

    tokens: int
    sites: Mapping[str, int]
    attention: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.sites.values()) + self.attention + self.head


def layer_sites(prefix: str, layers: int, shapes: Mapping[str, tuple[str, int, int]]) -> tuple[Site, ...]:
    """The sites of all layers in order. `shapes` maps the name inside the layer to (kind, out, in)."""
    return tuple(
        Site(f"{prefix}{layer}.{name}", layer, (rows, columns), kind)
        for layer in range(layers)
        for name, (kind, rows, columns) in shapes.items()
    )
