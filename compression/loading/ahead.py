"""Batches that threads make while the ones before them are computed with."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make` gives for the numbers from some one on up to `end`, in order, `depth` of them made ahead by
    `workers` threads.

    Any number may be asked for first; asking for another than the next one begins anew there. What `make`
    raises is raised where its number is asked for. `depth` bounds what is held. Close it, or use it in
    a `with` statement: threads end once what they are at is made. `waited` are the seconds in which the
    caller had to wait.
    """

    def __init__(self, make: Callable[[int], T], end: int, *, workers: int = 2, depth: int = 4) -> None:
        if workers < 1 or depth < 1:
            raise ValueError("at least one thread makes at least one thing ahead")
        self.waited = 0.0
        self.workers = workers
        self._make, self._end, self._depth = make, end, depth
        self._pool = ThreadPoolExecutor(workers, "ahead")
        self._coming: OrderedDict[int, Future[T]] = OrderedDict()

    def at(self, number: int) -> T:
        """What there is for a number below `end`. IndexError beyond; RuntimeError once it is closed."""
        if not 0 <= number < self._end:
            raise IndexError(number)
        if next(iter(self._coming), number) != number:
            self._forget()
        for following in range(number, min(self._end, number + self._depth + 1)):
            if following not in self._coming:
                self._coming[following] = self._pool.submit(self._make, following)
        since = time.perf_counter()
        try:
            return self._coming.pop(number).result()
        finally:
            self.waited += time.perf_counter() - since

    def close(self) -> None:
        """Drop what was made ahead and end the threads."""
        self._forget()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
