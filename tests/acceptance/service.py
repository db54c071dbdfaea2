"""A real `secateur up` for tests, and stock transformers in fresh processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 90.0
STOP_SECONDS = 60.0
COMMAND = str(Path(sys.executable).with_name("secateur"))


@dataclass
class Running:
    """One embedded service."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    def members(self) -> set[int]:
        """All living processes of the service's session and of sessions below it."""
        return descendants(self.process.pid)

    def stop(self) -> int:
        """Ctrl-C, and wait. Returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


def start(home: Path, *arguments: str) -> Running:
    """Start `secateur up` on a free port and wait until it is ready."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [COMMAND, "up", "--home", str(home), "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            ready = json.loads((home / "run" / "ready.json").read_text())
            if ready["pid"] == process.pid:
                return Running(str(ready["url"]), home, process, log)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    raise RuntimeError(f"the service did not start:\n{log.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """A service in a home of its own, stopped and removed at the end."""
    # Not below pytest's folders: the path of a unix socket is short.
    base = Path(tempfile.mkdtemp(prefix="sec-"))
    service = None
    try:
        service = start(base / "home", *arguments)
        yield service
    finally:
        if service and service.process.poll() is None:
            try:
                service.stop()
            except subprocess.TimeoutExpired:
                kill(service.members())
        shutil.rmtree(base, ignore_errors=True)


def kill(processes: set[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants(root: int) -> set[int]:
    """A process and everything it has started, over all generations, as far as it is alive."""
    parents: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (place / "stat").read_text().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    parents[int(place.name)] = int(fields[1])
    found = {root} & parents.keys()
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found


def alive(processes: set[int]) -> set[int]:
    """Those that still run (and are not merely waiting to be reaped)."""
    still = set()
    for process in processes:
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                still.add(process)
    return still


LOADER = """
import json, sys
import torch
from transformers import {loader}
model = {loader}.from_pretrained(sys.argv[1], dtype="auto")
model.eval()
with torch.no_grad():
    output = model(input_ids=torch.arange(1, 25).view(1, -1))
first = next(iter(output.values()))
weights = {{name: value for name, value in model.named_parameters() if value.dim() == 2}}
groups = {{}}
for name, value in weights.items():
    if value.shape[1] % 4 == 0:
        groups[name] = int((value.reshape(-1, 4) != 0).sum(1).max())
print(json.dumps({{
    "class": type(model).__name__,
    "dtype": str(model.dtype),
    "layers": model.config.num_hidden_layers,
    "parameters": model.num_parameters(),
    "finite": bool(torch.isfinite(first).all()),
    "shape": list(first.shape),
    "zeros": {{name: int((value == 0).sum()) for name, value in weights.items()}},
    "sizes": {{name: value.numel() for name, value in weights.items()}},
    "kept_of_four": groups,
}}))
"""


def load(folder: Path, loader: str = "AutoModelForCausalLM") -> dict[str, Any]:
    """Load a folder in a fresh process with nothing but stock transformers; where its zeros are."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error::FutureWarning", "-c", LOADER.format(loader=loader), str(folder)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MISSING" not in done.stderr, done.stderr
    assert "UNEXPECTED" not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def command(
    url: str, *arguments: str, seconds: float = 200, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The `secateur` command against a service."""
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "SECATEUR_URL": url, **environment},
        timeout=seconds,
        check=False,
    )
