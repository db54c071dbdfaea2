"""Child processes of the embedded service: started, logged, watched, restarted, ended with their parent."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

_LOG_BYTES: Final = 10 * 1024 * 1024
_LOG_FILES: Final = 5
_RESTART_FIRST: Final = 0.5
_RESTART_LAST: Final = 30.0
_STEADY_SECONDS: Final = 60.0

# Run before the program itself: SIGTERM when the parent ends, and no start at all when it has ended already.
_WITH_PARENT: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class StartFailed(Exception):
    """A child ended or did not answer while it was being started."""


class _LogFile(logging.handlers.RotatingFileHandler):
    """Says once, in one line, that nothing can be written; the service goes on without its log."""

    complained = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.complained:
            self.complained = True
            name, reason = Path(self.baseFilename).name, sys.exc_info()[1]
            sys.stderr.write(f"secateur: {name} is not written: {reason}\n")


class RotatingLog:
    """A log file of bounded size (with its older parts) that takes the lines of one child."""

    def __init__(self, path: Path, echo: Callable[[str], None] | None = None) -> None:
        self._handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._echo = echo
        self._prefix = path.stem

    def write(self, line: str) -> None:
        """Append one line, prefixed with the time."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        record = logging.makeLogRecord({"msg": f"{stamp} {line}"})
        self._handler.handle(record)
        if self._echo is not None:
            self._echo(f"{self._prefix:>10} | {line}")

    def close(self) -> None:
        self._handler.close()


@dataclass
class Child:
    """One supervised process in its own process group.

    ``ready`` says whether it does its work (asked until it does, at the start); ``patience`` is how many
    seconds it has for that, ``grace`` how many for ending after SIGTERM.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: RotatingLog
    ready: Callable[[], bool] = lambda: True
    patience: float = 30.0
    grace: float = 10.0
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = field(default=0.0, init=False)
    restart_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start the program; does not wait for it to be ready."""
        launcher = [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid())]
        self.process = subprocess.Popen(  # noqa: S603
            [*launcher, *self.command],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=self.pass_fds,
        )
        self.started_at = time.monotonic()
        assert self.process.stdout is not None
        threading.Thread(target=self._keep_log, args=(self.process.stdout,), daemon=True).start()

    def wait_ready(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Wait until it does its work; `StartFailed` when it ends or takes longer than its patience."""
        deadline = time.monotonic() + self.patience
        while not interrupted():
            if not self.alive:
                raise StartFailed(f"{self.name} ended with status {self.status} while starting")
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready within {self.patience:.0f} seconds")
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def look_after(self) -> bool:
        """Restart it when dead, after a pause that doubles with each quick death; true when restarted."""
        now = time.monotonic()
        if self.alive:
            return False
        if self.restart_at == 0.0:
            steady = now - self.started_at > _STEADY_SECONDS
            self.failures = 1 if steady else self.failures + 1
            self.restart_at = now + min(_RESTART_FIRST * 2 ** (self.failures - 1), _RESTART_LAST)
            self.log.write(f"[ended with status {self.status}; starting again]")
        if now < self.restart_at:
            return False
        self.restart_at = 0.0
        self.start()
        return True

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM to the process, SIGKILL to its group after its grace (at once when ``hurry`` says so)."""
        if self.process is None:
            return
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            deadline = time.monotonic() + self.grace
            while self.alive and time.monotonic() < deadline and not hurry():
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _keep_log(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(lambda: stream.readline(65536), b""):
                self.log.write(line.decode(errors="replace").rstrip())


def start_time(pid: int) -> str | None:
    """When the process started, in the system's words; tells it from a later process of the same number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if sys.platform == "linux":
            return None
    command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or None


def remember(children: Iterable[Child], path: Path) -> None:
    """Write down which processes run, for `end_orphans` of a later start."""
    running = [child.process.pid for child in children if child.process is not None and child.alive]
    entries = [{"pid": pid, "started": start_time(pid)} for pid in running]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries))
    temporary.replace(path)


def end_orphans(path: Path, grace: float = 15.0) -> int:
    """End the processes of a service that was killed before it could do so itself; how many there were."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return 0
    orphans = [entry for entry in entries if _is_same(entry)]
    for entry in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry["pid"], signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(map(_is_same, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for entry in filter(_is_same, orphans):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(entry["pid"], signal.SIGKILL)
    path.unlink(missing_ok=True)
    return len(orphans)


def _is_same(entry: Mapping[str, Any]) -> bool:
    return entry["started"] is not None and start_time(entry["pid"]) == entry["started"]
