"""An embedded service of one's own: started for a block of code, stopped with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STOP_SECONDS = 45.0


@contextlib.contextmanager
def running(home: Path, log: Path, seconds: float = 90.0) -> Iterator[str]:
    """`secateur up` with its data in home and its output in log; yields the address once it answers.

    Raises: SystemExit when it does not start in time; its output is then shown.
    """
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this program only, which then stops the service in order.
        process = subprocess.Popen(
            [Path(sys.executable).with_name("secateur"), "up", "--home", str(home), "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _address(process, home / "run" / "ready.json", log, seconds)
    finally:
        stop(process)


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(ready.read_text())["url"])
        time.sleep(0.1)
    raise SystemExit(f"The service did not start:\n{log.read_text(errors='replace')[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the service to stop, as Ctrl-C does; kill what has not gone after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
