"""Statistics of BatchNorms measured anew on the cut graph, without training.

Removing channels moves the mean and the variance of what the layers behind them compute, while BatchNorms
go on with those of the dense graph. (Li et al. 2020, EagleEye, arXiv 2007.02491, calls it adaptive batch
normalisation and finds that accuracies before it say little of those after training.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from compression.errors import RecoveryImpossible
from compression.graphs.batches import Batch
from compression.graphs.executor import to_numpy, to_torch
from compression.graphs.graph import Graph
from compression.graphs.renormalising import reestimate
from compression.graphs.unfolding import folded_convolutions, measure, unfold
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import (
    GraphRecoveryContext,
    GraphRecoveryResult,
    RecoveryOptions,
    has_norms,
    statistics,
)
from compression.recovery.graphs.feed import Feed
from compression.recovery.training import derived_seed, permutation

LEAST = 8
"""Batches that a graph fixes to fewer images say too little of a mean."""
STEP = "recovery-statistics"
UNFOLDED = "recovery-unfolded"
Found = TypeVar("Found")


class StatisticsOptions(RecoveryOptions):
    """Options of measuring statistics anew. Images are taken as they are judged: not augmented."""

    batch_size: int = Field(64, ge=2, le=4096, description="Images a step.")


class FedBatches(Sequence[Batch]):
    """Batches of a feed as the graph takes them, each made when it is asked for, in order."""

    def __init__(self, context: GraphRecoveryContext, feed: Feed, count: int, shown: bool = True) -> None:
        self._context, self._feed, self._count, self._shown = context, feed, count, shown

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("batches of a feed come one at a time")
        if self._shown:
            self._context.observer.progress(index, self._count)
        return self._context.fed(self._feed.at(index))


def over(
    context: GraphRecoveryContext,
    images: Sequence[int],
    size: int,
    count: int,
    found: Callable[[FedBatches], Found],
) -> tuple[Found, dict[str, Any]]:
    """What `found` makes of at most `count` batches of `size` of these images, each image once, and the facts
    of the feed. Batches have one size, so that all images count the same."""
    seed = derived_seed(context.seed, "statistics")
    order = [images[place] for place in permutation(len(images), seed)]
    size = context.batch or min(size, len(order))
    count = min(count, len(order) // size)
    if not count:
        raise RecoveryImpossible(
            f"the model takes {size} images at once, and there are {len(order)}: give more images"
        )

    def make(step: int) -> dict[str, Tensor]:
        chosen = order[step * size : (step + 1) * size]
        return context.data.batch(chosen)

    with Feed(context.data, make, count, context.threads) as feed:
        answer = found(FedBatches(context, feed, count))
        return answer, {"images": count * size, "loading": feed.facts()}


def kept(
    context: GraphRecoveryContext, images: Sequence[int], size: int, count: int
) -> tuple[Graph, dict[str, Any]]:
    """The same as a step that is kept: what was measured before a kill is taken from the store."""
    names = statistics(context.graph)
    if not context.store.has(STEP):
        graph, facts = over(context, images, size, count, lambda fed: reestimate(context.graph, fed))
        tensors = {name: to_torch(graph.initializers[name], name) for name in names}
        context.store.save(STEP, tensors, facts)
    tensors, facts = context.store.load(STEP)
    arrays = dict(context.graph.initializers)
    arrays |= {name: to_numpy(tensors[name], np.asarray(arrays[name])) for name in names}
    return replace(context.graph, initializers=arrays), facts


def unfolded(
    context: GraphRecoveryContext, images: Sequence[int], size: int, count: int
) -> tuple[Graph, dict[str, Any] | None]:
    """The graph with BatchNorms behind its convolutions, where there were such before they were folded, and
    the facts; as it is and None where there is no such convolution. Also a step that is kept."""
    if not folded_convolutions(context.graph):
        return context.graph, None
    if not context.store.has(UNFOLDED):
        found, facts = over(context, images, size, count, lambda fed: measure(context.graph, fed))
        context.store.save(UNFOLDED, found, {**facts, "unfolded": len(found)})
    tensors, facts = context.store.load(UNFOLDED)
    return unfold(context.graph, tensors), facts


@graph_recoveries.register
class BatchNormStatistics:
    """Measures the statistics of BatchNorms anew."""

    name = "batchnorm"
    title = "Statistics of BatchNorms measured anew"
    summary = (
        "Measures mean and variance of every BatchNorm anew on as many batches as there are steps; no weight "
        "changes. For graphs whose BatchNorms were not folded into convolutions."
    )
    options: type[BaseModel] = StatisticsOptions

    def check(self, graph: Graph, batch: int | None) -> None:
        """Raises RecoveryImpossible for a graph without BatchNorms, or one that takes few images at once."""
        if not has_norms(graph):
            raise RecoveryImpossible(FOLDED)
        if batch is not None and batch < LEAST:
            raise RecoveryImpossible(
                f"the model takes batches of {batch} alone, too few to measure statistics on: export it with "
                "a free batch"
            )

    def recover(self, context: GraphRecoveryContext) -> GraphRecoveryResult:
        """Raises RecoveryImpossible, BatchInvalid, pydantic.ValidationError (options)."""
        options = StatisticsOptions.model_validate(dict(context.options))
        self.check(context.graph, context.batch)
        graph, facts = kept(context, range(len(context.data)), options.batch_size, context.steps)
        history = {
            "training_samples": facts["images"],
            "trained_parameters": 0,
            "loading": facts["loading"],
            "options": options.model_dump(mode="json"),
        }
        return GraphRecoveryResult(self.name, graph, history)


FOLDED = (
    "the graph has no BatchNormalization (exporters fold most of them into convolutions), so there are no "
    'statistics to measure anew: the update "moments" does the same for those that were folded'
)
