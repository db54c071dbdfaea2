"""What a recovery of a graph is given and what it gives back, and the options that recoveries share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from compression.graphs.batches import Batch
from compression.graphs.graph import Graph
from compression.graphs.losses import Inner
from compression.graphs.operators.table import TORCH_TYPES
from compression.graphs.removal import Kept
from compression.loading.images.augmentation import Augmentation
from compression.loading.images.streaming import StreamedImages
from compression.recovery.types import Observer, Store

NORM = "BatchNormalization"
PIXELS = "pixel_values"


class RecoveryOptions(BaseModel):
    """Options of a recovery of graphs."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageOptions(RecoveryOptions):
    """How images are read, and how they are changed while the graph learns from them."""

    batch_size: int = Field(64, ge=1, le=4096, description="Images a step.")
    crop_padding: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Images are moved by up to this share of their sides, black coming in (0.125 is usual); "
        "0: not.",
    )
    flip: bool = Field(
        False,
        description="Left and right are exchanged for half of the images. Not for digits, letters, and what "
        "else a mirror makes something else of.",
    )
    jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.",
    )
    cutout: float = Field(
        0.0, ge=0, le=1, description="A square of this share of the shorter side is made grey; 0: none."
    )

    @property
    def augmentation(self) -> Augmentation:
        """What is done to images."""
        return Augmentation(self.crop_padding, self.flip, self.jitter, self.cutout)


@dataclass(frozen=True)
class GraphRecoveryContext:
    """Everything that a recovery of a graph may use.

    `graph` is the cut one, `dense` the one that it came from; `inner` are values that both compute. `data`
    are the images to learn from, none of which judges the result. `batch` is the only size of batches that
    the graph takes (None: any). Weights that `masks` (bool, of the shape of their tensor, by its name) do not
    keep stay zero. `threads` decode images.
    """

    method: str
    options: Mapping[str, Any]
    steps: int
    seed: int
    graph: Graph
    dense: Graph
    data: StreamedImages
    store: Store
    observer: Observer
    inner: Sequence[Inner] = ()
    batch: int | None = None
    masks: Mapping[str, Kept] = field(default_factory=dict)
    threads: int = 2

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images [b, c, h, w] as the one input of the graph, in its type."""
        value = self.graph.inputs[0]
        return {value.name: pixels.to(TORCH_TYPES[value.dtype])}

    def fed(self, found: Mapping[str, Tensor]) -> Batch:
        """A batch of images as the graph takes it."""
        return Batch(self.inputs(found[PIXELS]), found.get("labels"))


@dataclass(frozen=True)
class GraphRecoveryResult:
    """The graph with other weights and the same shapes; `history` is JSON for the report."""

    method: str
    graph: Graph
    history: Mapping[str, Any] = field(default_factory=dict)


class GraphRecovery(Protocol):
    """One way of buying quality back. `options` is a pydantic model that forbids unknown keys."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def check(self, graph: Graph, batch: int | None) -> None:
        """Raises RecoveryImpossible for a graph that cannot be recovered in this way; `batch` is the only
        size of batches that it takes (None: any)."""
        ...

    def recover(self, context: GraphRecoveryContext) -> GraphRecoveryResult:
        """Raises RecoveryImpossible, RecoveryDiverged, DatasetInvalid."""
        ...


def has_norms(graph: Graph) -> bool:
    """Whether a graph has BatchNorms that were not folded."""
    return any(node.operator == NORM for node in graph.nodes)


def statistics(graph: Graph) -> list[str]:
    """Names of the initializers that hold means and variances of BatchNorms, each once."""
    names = (name for node in graph.nodes if node.operator == NORM for name in node.inputs[3:5])
    return list(dict.fromkeys(names))
