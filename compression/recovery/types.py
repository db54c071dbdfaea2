"""What a recovery is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from compression.evaluation.types import Batch


class TrainingData(Protocol):
    """Samples to learn from, addressed by number so that a batch depends on nothing but its indices."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch: ...


class Store(Protocol):
    """Finished steps on disk (``compression.checkpoint.Store``)."""

    def save(self, name: str, tensors: Mapping[str, Tensor] | None, data: Mapping[str, Any]) -> None: ...

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def has(self, name: str) -> bool: ...

    def discard(self, names: Iterable[str]) -> None: ...


class Observer(Protocol):
    """Who hears of progress, log lines and numbers."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...

    def metric(self, name: str, value: float) -> None: ...


@dataclass(frozen=True)
class RecoveryContext:
    """Everything a recovery may use.

    ``pruned`` and ``dense`` are folders that stock ``transformers`` loads. ``masks`` says which weights are
    kept (bool [out, in] by tensor name as in ``pruned``); a tensor without a mask is free. ``output`` is a
    folder that receives ``*.safetensors`` with the changed tensors only, named and typed as in ``pruned``.
    ``rows`` are the rows of the dense vocabulary that ``pruned`` has (int64, in its order; None: all).
    """

    method: str
    options: Mapping[str, Any]
    steps: int
    seed: int
    task: str
    pruned: Path
    dense: Path
    output: Path
    masks: Mapping[str, Tensor]
    data: TrainingData
    store: Store
    observer: Observer
    device: str = "cpu"
    sites: Sequence[str] = ()
    rows: Tensor | None = None


@dataclass(frozen=True)
class RecoveryResult:
    """``changed`` names the rewritten tensors, ``files`` holds them, ``history`` is JSON for the report."""

    method: str
    changed: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    history: Mapping[str, Any] = field(default_factory=dict)
