"""Named places where the fault suite kills, stops or breaks a process for real.

``point("after_claim")`` does nothing unless the environment arms it:

- ``SECATEUR_FAULT=name[:action[:hit]]``: at the ``hit``-th passing (1 when left out) of the point ``name`` in
  this process, do ``action``: ``kill`` (SIGKILL to a process group, the default), ``stop`` (SIGSTOP to it) or
  ``raise`` (raise `FaultInjected`).
- ``SECATEUR_FAULT_ONCE=path``: the file is made when the fault fires; while it exists nothing fires again, in
  any process.
- ``SECATEUR_FAULT_GROUP=pgid``: the process group that gets the signal; 0 is the group of the process that
  passes. Left out, it is the worker's group, also for points that its runner passes.
- ``SECATEUR_FAULT_ARMED_BY=other``: passings count only after this process has passed the point ``other``.

The points are `POINTS`; a misspelt one in the environment is an error, not a test that tests nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

POINTS: Final = (
    "after_claim",
    "after_spawn",
    "mid_load",
    "mid_block",
    "before_checkpoint_rename",
    "after_checkpoint_rename",
    "mid_export",
    "after_fsync",
    "after_rename",
    "before_commit",
    "after_commit",
    "before_ring",
)
MARKS: Final = ("before_publish",)
ACTIONS: Final = ("kill", "stop", "raise")
VARIABLES: Final = tuple(f"SECATEUR_FAULT{suffix}" for suffix in ("", "_ONCE", "_GROUP", "_ARMED_BY"))


class FaultInjected(Exception):
    """Raised by the action ``raise``."""


@dataclass
class _Fault:
    name: str
    action: str
    hit: int
    once: str | None
    group: int | None
    armed_by: str | None
    passed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_by(self, name: str) -> bool:
        """Count a passing; true when the fault must fire now."""
        with self.lock:
            if name == self.armed_by:
                self.armed_by = None
            if self.armed_by is not None or name != self.name:
                return False
            self.passed += 1
            return self.passed == self.hit and self._first()

    def _first(self) -> bool:
        if self.once is None:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True

    def fire(self) -> None:
        if self.action == "raise":
            raise FaultInjected(self.name)
        own = os.getpgrp()
        group = self.group or own
        os.killpg(group, signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)
        if self.action == "kill" and group != own:
            # The group's death ends this process by its parent-death signal; nothing may happen in between.
            time.sleep(60)


def _from_environment() -> _Fault | None:
    setting = os.environ.get("SECATEUR_FAULT")
    if not setting:
        return None
    name, action, hit = [*setting.split(":"), "", ""][:3]
    if name not in POINTS or (action or "kill") not in ACTIONS:
        raise ValueError(f"SECATEUR_FAULT: unknown point or action in {setting!r}; points: {POINTS}")
    armed_by = os.environ.get("SECATEUR_FAULT_ARMED_BY") or None
    if armed_by is not None and armed_by not in POINTS + MARKS:
        raise ValueError(f"SECATEUR_FAULT_ARMED_BY: unknown point {armed_by!r}")
    group = os.environ.get("SECATEUR_FAULT_GROUP")
    return _Fault(
        name=name,
        action=action or "kill",
        hit=int(hit or 1),
        once=os.environ.get("SECATEUR_FAULT_ONCE") or None,
        group=int(group) if group else None,
        armed_by=armed_by,
    )


_fault: Final = _from_environment()


def armed() -> bool:
    """Whether this process was started with a fault armed."""
    return _fault is not None


def point(name: str) -> None:
    """Pass the named point: nothing unless it is armed (`FaultInjected` for the action ``raise``)."""
    if _fault is not None and _fault.pass_by(name):
        _fault.fire()


def folders() -> tuple[Path, ...]:
    """Where a sandboxed process that passes points must be able to write; none unless a fault is armed."""
    return () if _fault is None or _fault.once is None else (Path(_fault.once).parent,)


def environment() -> dict[str, str]:
    """What a runner needs so that its points hit this process's group; empty unless a fault is armed."""
    if _fault is None:
        return {}
    kept = {key: os.environ[key] for key in VARIABLES if key in os.environ}
    return {"SECATEUR_FAULT_GROUP": str(os.getpgrp()), **kept}
