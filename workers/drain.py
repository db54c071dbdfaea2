"""Whether this worker is being stopped: asked by the children that hold jobs, said by the main process."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Made before the pool is forked, so the main process and its children share this byte.
_flag: Final = mmap.mmap(-1, 1)
_own = False


def begin() -> None:
    """From now on jobs are given back and no new ones are taken."""
    _flag[0] = 1


def draining() -> bool:
    """Whether jobs are to be given back."""
    return _own or _flag[0] == 1


def _asked(number: int, frame: object) -> None:
    global _own
    _own = True


@contextmanager
def on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM to this process means to give the job back, not to die with it."""
    before = signal.signal(signal.SIGTERM, _asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
