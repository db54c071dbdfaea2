"""Clean processes without the seconds that importing takes: forks of a process that has imported and done
nothing else.

``python -m compression.evaluation.nursery`` imports the loader, then answers lines of JSON on its standard
input: ``{"module": ..., "arguments": [...]}`` runs that module's ``main`` in a fork, and the answer has the
exit status and what the fork said. It ends with its standard input, and dies with the process that started
it.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

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
    """One such process, started when it is first asked. Not for use after a fork of this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
        )
        atexit.register(self.close)

    def run(self, module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of the module's ``main``. Raises NurseryGone."""
        line = json.dumps({"module": module, "arguments": list(arguments)}) + "\n"
        streams = self._process.stdin, self._process.stdout
        assert streams[0] is not None
        assert streams[1] is not None
        with self._lock:
            try:
                streams[0].write(line.encode())
                streams[0].flush()
                answer = streams[1].readline()
            except OSError:
                answer = b""
        if not answer:
            raise NurseryGone("the process that forks clean ones ended")
        found = json.loads(answer)
        return int(found["status"]), str(found["output"]), str(found["errors"])

    def close(self) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            # Of a killed one, what was not read is left in the pipe.
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        self._process.wait()


_known: dict[tuple[int, int], Nursery] = {}


def nursery(threads: int, environment: Mapping[str, str]) -> Nursery:
    """The nursery of this process for children with so many threads."""
    key = (os.getpid(), threads)
    if key not in _known:
        _known[key] = Nursery(environment)
    return _known[key]


def forget(threads: int) -> None:
    """Let the next call start a new one."""
    known = _known.pop((os.getpid(), threads), None)
    if known is not None:
        known.close()


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


def serve() -> int:
    """Answer until the standard input ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    # What an import prints must not pass for an answer.
    os.dup2(2, 1)
    import transformers

    for name in PRELOADED:
        importlib.import_module(name)
    for name in TYPICAL:
        getattr(transformers, name)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_fork(json.loads(line))).encode() + b"\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(serve())
