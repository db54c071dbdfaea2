"""Images of a recovery, batch after batch, made ahead of the steps; how long was waited for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from compression.evaluation.types import Batch
from compression.loading.ahead import Ahead
from compression.loading.images.streaming import StreamedImages

DEPTH = 4
"""Batches that wait at most beside those that are being made."""


class Feed:
    """Batches by step. `make(step)` is called in `threads` threads, ahead of the steps that ask; use it in
    a `with` statement."""

    def __init__(
        self, images: StreamedImages, make: Callable[[int], Batch], steps: int, threads: int
    ) -> None:
        self._images = images
        self._ahead = Ahead(make, steps, workers=threads, depth=max(DEPTH, threads))
        self._since, self._looking = time.perf_counter(), 0.0

    def __len__(self) -> int:
        return len(self._images)

    def at(self, step: int) -> Batch:
        """The batch of a step."""
        return self._ahead.at(step)

    def batch(self, indices: Sequence[int]) -> Batch:
        """These images as they are, made here and now: the whole time is spent waiting."""
        with self._timed():
            return self._images.batch(indices)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self._looking += time.perf_counter() - since

    def facts(self) -> dict[str, Any]:
        """Seconds since it was made, those in which computing waited for images, their share, how many
        threads made batches, and whether decoded images were kept."""
        seconds = time.perf_counter() - self._since
        waited = self._ahead.waited + self._looking
        return {
            "seconds": seconds,
            "waited_seconds": waited,
            "waited_share": waited / seconds if seconds else 0.0,
            "threads": self._ahead.workers,
            "decoded_once": self._images.decoded_once,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.close()
