"""Recovering a cut graph on the images of a job."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import trained_initializers
from compression.graphs.graph import Graph
from compression.graphs.losses import Inner
from compression.graphs.pruning import Chosen
from compression.graphs.removal import Cut, Kept, removed_labels
from compression.loading.images.plan import ImagePlan
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import GraphRecoveryContext
from compression.stages.data import note_overlap
from compression.stages.graphs.network import fixed_batch
from compression.stages.job import Data, Loaded

LEAST_THREADS = 2
"""Threads that decode: with one, no image is ready while a step waits for a slow one."""


@dataclass(frozen=True)
class Recovered:
    """The recovered graph, of the shapes of the cut one, and the account of it for the report."""

    graph: Graph
    history: Mapping[str, Any]


def check_recoverable(loaded: Loaded, graph: Graph) -> None:
    """Raises RecoveryImpossible where the job asks for a recovery that this graph cannot have: before
    anything else is done."""
    graph_recoveries[loaded.specification.recovery.method].check(graph, fixed_batch(graph))


def recover(
    loaded: Loaded,
    data: Data,
    anatomy: Anatomy,
    units: Chosen,
    smaller: Graph,
    masks: Mapping[str, Kept],
) -> Recovered | None:
    """Recover the pruned graph, if the specification asks for it; weights that `masks` (of the shapes of
    their tensors) do not keep stay zero. Raises RecoveryImpossible, RecoveryDiverged,
    DatasetInvalid, DatasetInsufficient."""
    spec = loaded.specification.recovery
    if spec.method == "none":
        return None
    method = graph_recoveries[spec.method]
    options: Any = method.options.model_validate(spec.options)
    assert isinstance(data.plan, ImagePlan)
    assert spec.dataset is not None
    wanted = spec.budget.steps * options.batch_size / (1 - getattr(options, "held_out", 0.0))
    since = time.perf_counter()
    images = data.plan.streamed(spec.dataset, math.ceil(wanted), loaded.specification.seed)
    reading = time.perf_counter() - since
    data.recovery = images
    note_overlap(loaded, data, "recovery", images)
    result = method.recover(
        GraphRecoveryContext(
            method=spec.method,
            options=spec.options,
            steps=spec.budget.steps,
            seed=loaded.specification.seed,
            graph=smaller,
            dense=anatomy.graph,
            data=images,
            store=loaded.store,
            observer=loaded.observer,
            inner=inner_values(anatomy, units, smaller),
            batch=fixed_batch(smaller),
            masks=masks,
            threads=max(LEAST_THREADS, loaded.request.threads),
        )
    )
    history = {"method": result.method, **result.history}
    history["loading"] = {**result.history["loading"], "reading_seconds": reading}
    return Recovered(result.graph, history)


def inner_values(anatomy: Anatomy, units: Chosen, smaller: Graph) -> list[Inner]:
    """Values that both graphs compute, with what the cut one has of them: those that several operators read
    (where the branches of a block part) and what the last operator with weights reads (the features that
    are classified)."""
    graph, cutting = anatomy.graph, Cut(anatomy, removed_labels(anatomy, units))
    readers = Counter(name for node in graph.nodes for name in set(node.inputs))
    weights = trained_initializers(graph)
    last = [name for node in graph.nodes if weights & set(node.inputs) for name in node.inputs[:1]][-1:]
    made = {name for node in smaller.nodes for name in node.outputs}
    found = []
    for name in (name for node in graph.nodes for name in node.outputs if name in made):
        if (readers[name] < 2 and name not in last) or name not in anatomy.probe.floating:
            continue
        kept = [cutting.keep(name, axis) for axis in range(len(anatomy.probe.shape(name)))]
        if all(one is None or one.any() for one in kept):
            places = {axis: one.nonzero()[0] for axis, one in enumerate(kept) if one is not None}
            found.append(Inner(name, kept=places))
    return found
