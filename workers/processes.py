"""What ``/proc`` says about processes: start times, descendants, resident memory. Empty answers elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def start_time(pid: int) -> int | None:
    """Start of the process in clock ticks since boot: tells it from a later process of the same number."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def descendants(pid: int) -> list[int]:
    """The process's children, their children and so on; not itself."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def resident_bytes(pid: int) -> int:
    """Memory in bytes that the process alone keeps: anonymous and shared pages, not mapped files."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(value.split()[0]) for value in fields.values()) * 1024


def end(pids: list[int]) -> None:
    """SIGKILL each of the processes and reap those that are children of this one."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except OSError:
            continue


def _parents() -> Iterator[tuple[int, int]]:
    try:
        names = os.listdir(_PROC)
    except OSError:
        return
    for name in names:
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None:
                yield int(name), int(fields[1])


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third (state) on."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold blanks and brackets itself.
    return text[text.rindex(")") + 2 :].split()
