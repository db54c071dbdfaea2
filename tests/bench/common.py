"""What the benchmarks share: a service of their own, tables in Markdown, the machine's description."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
REFERENCE = ROOT.parent / "shared"


def reference(*parts: str) -> Path:
    """A file of the reference data beside the repository; exits with a plain message where there is none."""
    path = REFERENCE.joinpath(*parts)
    if not path.exists():
        sys.exit(f"this benchmark needs {'/'.join(('../shared', *parts))}, which is not on this machine")
    return path


def machine() -> str:
    """One line that names the processor, cores and versions the figures were taken with."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    from importlib.metadata import version

    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}"
    )


@contextmanager
def service(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """An embedded service in a temporary home; yields `{"url", "pid", "home"}` and stops it at the end."""
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as home:
        log = Path(home) / "up.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "up", "--home", f"{home}/home", "--port", "0", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
        ready = Path(home) / "home" / "run" / "ready.json"
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the service did not start:\n{log.read_text()}")
                time.sleep(0.1)
            yield {**json.loads(ready.read_text()), "home": f"{home}/home", "process": process}
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats get four significant digits."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, command: str, *blocks: str) -> None:
    """Writes `results/NAME.md` and prints it."""
    text = "\n\n".join([f"# {title}", f"`{command}`\n\n{machine()}", *blocks]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
