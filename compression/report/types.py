"""Everything a report is made of, as plain data. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """What the pipeline knows at the end of a job.

    specification  the resolved specification as JSON
    recipe         the catalogue's entry: ``name``, ``title``, ``summary``, ``paper``
    model          architecture, family, task, layers, hidden, vocabulary, dtype ... of the dense model
    cost           ``evaluation.cost.cost`` of ``dense``, ``pruned`` and, after a recovery, ``recovered``
    quality        ``evaluation.quality.evaluate`` of ``dense``, ``pruned``, ``recovered`` (or None)
    domain_quality the same on the text of the domain; every entry None (or missing) where there is none
    baselines      of other criteria at the same target, by name: ``quality`` and ``domain`` (or None)
    facts          of each pruned weight: ``name``, ``reconstruction_error``, ``weight_error``
    dropped        of layer-drop: ``LayerChoice.to_json()``; None otherwise
    experts        the experts that each layer kept, where some went; None otherwise
    widths         of neurons, heads, experts: ``layout``, ``sparsity`` of them, and ``structures``:
                   ``kind``, ``dense``, ``kept``, ``parameters`` (of one in one layer), ``layers``; or None
    vocabulary     of rows of the vocabulary: ``dense`` and ``kept`` numbers of them and what else
                   ``stages.retold.account`` says; None otherwise
    low_rank       of low-rank weights: ``sparsity`` of them, and ``weights``: ``name``, ``layer``, ``shape``,
                   ``rank`` (None: dense); or None
    graph          of a network given as a graph: ``stages.graphs.account.graph_account``; None otherwise
    recovery       ``RecoveryResult.history`` with ``method``; None without recovery
    measured       ``evaluation.measure.with_pruned_memory``: ``latency``, ``memory`` (each may be None)
    verification   what ``export.verify.run`` gave
    data           facts of ``calibration``, ``evaluation``, ``recovery`` and ``overlap`` {use: shared texts}
    artifact       ``bytes``, ``files`` and ``gguf`` (or None) of the artifact
    inputs         sha256 of the model's files and of the datasets: ``model``, ``datasets``
    versions       software by name
    device         ``type``, ``name``, ``threads``
    seconds        wall time of each stage, by name
    resumed        whether an earlier attempt was gone on from
    """

    specification: Json
    recipe: Json
    model: Json
    cost: Json
    quality: Json
    data: Json
    artifact: Json
    inputs: Json
    versions: Mapping[str, str]
    device: Json
    seconds: Mapping[str, float]
    domain_quality: Json = field(default_factory=dict)
    baselines: Json = field(default_factory=dict)
    facts: Sequence[Json] = ()
    dropped: Json | None = None
    widths: Json | None = None
    experts: Sequence[Sequence[int]] | None = None
    vocabulary: Json | None = None
    low_rank: Json | None = None
    graph: Json | None = None
    recovery: Json | None = None
    measured: Json = field(default_factory=dict)
    verification: Json | None = None
    resumed: bool = False

    @property
    def units(self) -> Json | None:
        """The account of what went whole (neurons and heads, rows of the vocabulary, ranks, channels): with
        ``sparsity``."""
        found = (self.widths, self.vocabulary, self.low_rank, self.graph)
        return next((account for account in found if account is not None), None)
