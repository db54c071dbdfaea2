"""Measurements that outlive a job: what pruning a layer does to a model, by hash of model, data and way of
pruning, and times of layers of graphs, by hash of device, runtime, threads and dtype.

A runner gets copies of its tenant's files in its work folder and leaves new ones there; what it leaves is
checked before it is kept. Losing any of it costs time and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

FOLDER: Final = "cache"
KEPT_FILES: Final = 256
FILE_BYTES: Final = 1 << 20
_FILES: Final = "[dl]*-*.json"
_NAME: Final = re.compile(r"(divergences|layers)-[0-9a-f]{32}\.json")


class Measurements:
    """The files of one tenant below `home`."""

    def __init__(self, home: Path, tenant: str) -> None:
        self._folder = home / FOLDER / tenant

    def lend(self, work: Path) -> None:
        """Copy the newest files into the work folder's own cache folder, which is made."""
        target = work / FOLDER
        target.mkdir(exist_ok=True)
        for path in self._newest():
            with suppress(OSError):
                shutil.copyfile(path, target / path.name)

    def take_back(self, work: Path) -> int:
        """Keep what a runner has left, if it is what it should be; how many files were kept."""
        kept = 0
        for path in sorted((work / FOLDER).glob(_FILES)):
            text = _checked(path)
            if text is not None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                temporary = self._folder / f"{path.name}.{os.getpid()}.tmp"
                temporary.write_text(text)
                temporary.replace(self._folder / path.name)
                kept += 1
        for path in list(self._newest(all_of_them=True))[KEPT_FILES:]:
            path.unlink(missing_ok=True)
        return kept

    def _newest(self, *, all_of_them: bool = False) -> Iterator[Path]:
        dated = []
        for path in self._folder.glob(_FILES):
            with suppress(OSError):
                dated.append((path.stat().st_mtime, path.name, path))
        ordered = sorted(dated, reverse=True)
        return (path for _, _, path in (ordered if all_of_them else ordered[:KEPT_FILES]))


def _checked(path: Path) -> str | None:
    """The text of a file that a runner left, if it is a plain small file of names and finite numbers."""
    if not _NAME.fullmatch(path.name):
        return None
    raw = read_plain(path)
    try:
        values = None if raw is None else json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    if not all(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values.values()
    ):
        return None
    return json.dumps(values, sort_keys=True)


def read_plain(path: Path) -> bytes | None:
    """The content of a file that a runner left; None for links, large files and what cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            raw = file.read(FILE_BYTES + 1)
    except OSError:
        return None
    return raw if len(raw) <= FILE_BYTES else None
