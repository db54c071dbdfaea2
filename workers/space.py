"""A disk without space left, as the endings of jobs tell it."""

from __future__ import annotations

import errno
from typing import Final

STORAGE_FULL: Final = "storage_full"
NO_SPACE: Final = "There is no space left for the files of this job."
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Whether the operating system refused to write for lack of space, or the service's stores did."""
    full = isinstance(error, OSError) and error.errno in _FULL
    return full or getattr(error, "code", None) == STORAGE_FULL
