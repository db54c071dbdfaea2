"""What a job shows its criteria and its updates: calibration images, or inputs made without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.errors import DatasetInvalid
from compression.graphs.batches import Batches
from compression.graphs.criteria import CRITERIA
from compression.graphs.dependencies import Anatomy
from compression.graphs.evidence import Collecting, Evidence
from compression.graphs.graph import Graph
from compression.graphs.operators.table import TORCH_TYPES
from compression.graphs.pruning import evidence_for
from compression.graphs.synthetic import image_noise, remembered_batches
from compression.loading.images.plan import Images
from compression.stages.graphs.network import calibration_batches, fixed_batch
from compression.stages.job import Data

FOLLOW_A_LOSS = frozenset({"gradient.sum", "gradient.group", "removal"})
SYNTHETIC_SIZE = 32
"""Synthetic samples in a batch, where a graph takes any number."""
Options = Mapping[str, Any]


class Shown:
    """The batches of one job; those that are made up are made once."""

    def __init__(self, anatomy: Anatomy, options: Options, data: Data, seed: int) -> None:
        self._anatomy, self._options, self._data, self._seed = anatomy, options, data, seed
        self._made: Batches | None = None

    def evidence(self, criterion: str) -> Evidence | None:
        """What a criterion needs of the data; None for one of weights alone."""
        needs = CRITERIA[criterion].needs
        if not needs:
            return None
        balanced = self._options["class_weights"] == "balanced"
        why = "options.class_weights balanced weighs classes" if balanced else ""
        if needs & FOLLOW_A_LOSS:
            why = "this criterion follows a loss"
        how = Collecting(balanced=balanced, seed=self._seed)
        return evidence_for(self._anatomy, criterion, self.batches(why), how)

    def batches(self, labelled: str = "") -> Batches:
        """What criteria and updates see; `labelled` says why images need labels, if they do. DatasetInvalid
        where these are missing, or a graph takes inputs that cannot be made up."""
        if self._options["data"] == "images":
            assert isinstance(self._data.calibration, Images)
            return calibration_batches(self._anatomy.graph, self._data.calibration.batches, labelled)
        if self._made is None:
            samples, sizes = int(self._options["synthetic_samples"]), self._options["sizes"]
            self._made = synthetic(self._anatomy.graph, samples, sizes, self._seed % (1 << 31))
        return self._made


def synthetic(graph: Graph, samples: int, sizes: Mapping[str, int], seed: int) -> Batches:
    """Inputs without data: as BatchNorms remember theirs where the graph still has some, else Gaussians with
    mean and deviation of normalised images, and their spectrum."""
    whole = [value.name for value in graph.inputs if not TORCH_TYPES[value.dtype].is_floating_point]
    if whole:
        raise DatasetInvalid(
            f"options.data synthetic draws Gaussians, and the input {whole[0]!r} takes whole numbers: give "
            "images, or take a criterion of weights alone and the update none"
        )
    if (fixed_batch(graph) or 1) > 1:
        raise DatasetInvalid(
            f"the model takes {fixed_batch(graph)} samples at once and no other number: export it with a "
            "free batch"
        )
    size = fixed_batch(graph) or min(SYNTHETIC_SIZE, samples)
    count = -(-samples // size)
    remembers = any(node.operator == "BatchNormalization" for node in graph.nodes)
    make = remembered_batches if remembers else image_noise
    return make(graph, count, size, sizes, seed)
