"""A local file that is hashed while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.blobs.base import Blob
from service.errors import StorageFull

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def space() -> Iterator[None]:
    """Turns the operating system's ways to say "full" into `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("no space is left to store files") from error
        raise


class Spool:
    """A new file in `folder`. Whatever goes wrong while it is written, nothing stays behind."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / secrets.token_hex(16)
        self._digest = hashlib.sha256()
        self._bytes = 0
        with space():
            self.handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._open = True

    def write(self, data: bytes) -> None:
        """Appends bytes. Raises `StorageFull`."""
        view = memoryview(data)
        try:
            with space():
                left = view
                while left:
                    left = left[os.write(self.handle, left) :]
        except BaseException:
            self.discard()
            raise
        self._digest.update(view)
        self._bytes += len(view)

    def content(self) -> Blob:
        """Digest and size of what was written so far."""
        return Blob(self._digest.hexdigest(), self._bytes)

    def close(self) -> None:
        """Closes the file; it stays."""
        if self._open:
            self._open = False
            os.close(self.handle)

    def discard(self) -> None:
        """Closes and removes the file. Does nothing to a file that was closed before."""
        if self._open:
            self.close()
            self.path.unlink(missing_ok=True)
