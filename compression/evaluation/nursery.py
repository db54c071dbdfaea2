"""Clean processes without the seconds that importing takes: forks of a process that has imported and done
nothing else.

``python -m compression.evaluation.nursery`` imports the loader, then answers lines of JSON on its standard
input: ``{"module": ..., "arguments": [...]}`` runs that module's ``main`` in a fork, and the answer has the
exit status and what the fork said. It ends with its standard input, and dies with the process that started
it. A process that itself has imported and done nothing else (a worker's runner at its start) forks one off.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

PRELOADED = (
    "compression.export.verify",
    "compression.evaluation.measure",
    "compression.evaluation.timing",
)
# Classes that bring in what most models share.
TYPICAL = ("LlamaForCausalLM", "BertForSequenceClassification")
_PR_SET_PDEATHSIG = 1


class NurseryGone(RuntimeError):
    """The process that forks ended."""


class Nursery:
    """One such process: its pid, the pipes to it, and how to wait for its end. Not for use after a fork of
    this process."""

    def __init__(self, pid: int, requests: IO[bytes], answers: IO[bytes], wait: Callable[[], object]) -> None:
        self.pid = pid
        self._requests, self._answers, self._wait = requests, answers, wait
        self._lock = threading.Lock()
        atexit.register(self.close)

    def run(self, module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of the module's ``main``. Raises NurseryGone."""
        line = json.dumps({"module": module, "arguments": list(arguments)}) + "\n"
        with self._lock:
            try:
                self._requests.write(line.encode())
                self._requests.flush()
                answer = self._answers.readline()
            except OSError:
                answer = b""
        if not answer:
            raise NurseryGone("the process that forks clean ones ended")
        found = json.loads(answer)
        return int(found["status"]), str(found["output"]), str(found["errors"])

    def close(self) -> None:
        """End it."""
        for stream in (self._requests, self._answers):
            # Of a killed one, what was not read is left in the pipe.
            with suppress(BrokenPipeError):
                stream.close()
        self._wait()


_known: dict[tuple[int, int], Nursery] = {}


def nursery(threads: int, environment: Mapping[str, str]) -> Nursery:
    """The nursery of this process for children with so many threads, started in a new interpreter if there
    is none."""
    key = (os.getpid(), threads)
    if key not in _known:
        _known[key] = _interpreter(environment)
    return _known[key]


def fork_off(threads: int, environment: Mapping[str, str]) -> Nursery | None:
    """Make a fork of this process its nursery: only for one that has imported and done nothing else.

    None, and nothing happens, where there is no such thing (not Linux) or this process was started with
    another environment than ``environment``.
    """
    if sys.platform != "linux" or any(os.environ.get(name) != text for name, text in environment.items()):
        return None
    _load()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    theirs, requests = os.pipe()
    answers, ours = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            for source, target in ((theirs, 0), (ours, 1), (nothing, 2)):
                os.dup2(source, target)
            # Whoever listens to the process that forked shall see its end.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            status = serve(parent)
        finally:
            os._exit(status)
    os.close(theirs)
    os.close(ours)
    pipes = os.fdopen(requests, "wb"), os.fdopen(answers, "rb")
    found = Nursery(child, *pipes, functools.partial(_reap, child))
    _known[os.getpid(), threads] = found
    return found


def forget(threads: int) -> None:
    """Let the next call start a new one."""
    known = _known.pop((os.getpid(), threads), None)
    if known is not None:
        known.close()


def _interpreter(environment: Mapping[str, str]) -> Nursery:
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Nursery(process.pid, process.stdin, process.stdout, process.wait)


def _reap(pid: int) -> None:
    # Closed a second time at the end of this process, it is gone.
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _fork(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one request in a fork."""
    output, errors = os.memfd_create("output"), os.memfd_create("errors")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_with_parent()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (errors, 2)):
                os.dup2(source, target)
            status = int(importlib.import_module(request["module"]).main(request["arguments"]) or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    said = {"status": os.waitstatus_to_exitcode(ended)}
    return {**said, "output": _read(output), "errors": _read(errors)}


def _read(file: int) -> str:
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        return stream.read().decode(errors="replace")


def serve(parent: int | None = None) -> int:
    """Answer until the standard input ends, or the parent (its pid, where it may be gone already)."""
    _die_with_parent()
    if parent is not None and os.getppid() != parent:
        return 1
    answers = os.fdopen(os.dup(1), "wb")
    # What an import prints must not pass for an answer.
    os.dup2(2, 1)
    _load()
    # from_pretrained works on the device "meta", where torch looks into its compiler: imported once, not in
    # every fork.
    importlib.import_module("torch._dynamo")
    with os.fdopen(os.dup(0), "rb") as requests:
        for line in requests:
            answers.write(json.dumps(_fork(json.loads(line))).encode() + b"\n")
            answers.flush()
    return 0


def _load() -> None:
    from compression.loading.transformers_import import transformers

    for name in PRELOADED:
        importlib.import_module(name)
    for name in TYPICAL:
        getattr(transformers, name)


if __name__ == "__main__":
    sys.exit(serve())
