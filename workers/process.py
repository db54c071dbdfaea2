"""A runner seen from its supervisor: started walled in, listened to, measured, ended."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

import structlog

from service import faults
from workers import kernel, processes
from workers.messages import LINE_BYTES, Message, MessageInvalid, parse
from workers.sandbox import PARENT_VARIABLE, runner_environment

_log = structlog.get_logger(__name__)
_BACKLOG: Final = 1000
_TAIL_LINES: Final = 200
_PR_SET_CHILD_SUBREAPER: Final = 36


class RunnerProcess:
    """One running ``python -m workers.runner``.

    Must be started from the main thread of a process that lives as long as the runner shall: the kernel's
    parent-death signal follows the thread that started it.
    """

    def __init__(self, work: Path, threads: int, environment: Mapping[str, str]) -> None:
        # A grandchild that leaves the runner's group comes to this process when its parent dies, to be ended.
        kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._others = set(processes.descendants(os.getpid()))
        extra = {PARENT_VARIABLE: str(os.getpid()), **faults.environment(), **environment}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-s", "-P", "-m", "workers.runner", str(work)],
            cwd=work,
            env=runner_environment(work, threads, extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._messages: queue.Queue[Message] = queue.Queue(_BACKLOG)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._discard = threading.Event()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._keep_tail, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def next_message(self, seconds: float) -> Message | None:
        """The next line of the runner, waiting for it at most ``seconds``; None when there is none."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    @property
    def ended(self) -> bool:
        """Whether the runner is gone and everything it said has been taken."""
        return self._process.poll() is not None and not self._threads[0].is_alive() and self._messages.empty()

    @property
    def exit_status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def tail(self) -> str:
        """The last lines of its stderr."""
        return "\n".join(self._tail)

    def resident_bytes(self) -> int:
        """Memory in bytes of the runner and everything below it."""
        return sum(processes.resident_bytes(pid) for pid in (self.pid, *processes.descendants(self.pid)))

    def stop(self, grace_seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """End the runner and all it started: SIGTERM, up to ``grace_seconds``, SIGKILL. Idempotent.

        ``meanwhile`` is called many times a second during the grace.
        """
        self._discard.set()
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while self._process.poll() is None and time.monotonic() < deadline:
                meanwhile()
                time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()
        processes.end([pid for pid in processes.descendants(os.getpid()) if pid not in self._others])
        for thread in self._threads:
            thread.join(timeout=5)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _listen(self, stream: IO[bytes]) -> None:
        while line := stream.readline(LINE_BYTES):
            try:
                message = parse(line)
            except MessageInvalid as error:
                _log.warning("runner.line_dropped", reason=str(error), bytes=len(line))
                continue
            while not self._discard.is_set():
                with contextlib.suppress(queue.Full):
                    self._messages.put(message, timeout=0.2)
                    break

    def _keep_tail(self, stream: IO[bytes]) -> None:
        while line := stream.readline(LINE_BYTES):
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text[:2000])
            _log.debug("runner.stderr", line=text[:2000])
