"""Turning pickled weights into safetensors, on the user's own machine and in the user's own Python."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from secateur.errors import InputInvalid


def run(source: Path, destination: Path, python: str | None = None) -> int:
    """Run the converter as a process of its own and return its exit status.

    The converter needs torch and safetensors, which this package does not import. `python` names another
    interpreter that has them; its text goes to this process's standard streams.

    Raises: InputInvalid when the converter or the interpreter is not there.
    """
    package = importlib.util.find_spec("compression")
    places = list(package.submodule_search_locations or []) if package else []
    scripts = [Path(place) / "loading" / "convert.py" for place in places]
    script = next((path for path in scripts if path.is_file()), None)
    if script is None:
        raise InputInvalid("This installation lacks the converter (compression/loading/convert.py).")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [python or sys.executable, str(script), str(source), str(destination)],
            env=environment,
            check=False,
        )
    except OSError as error:
        raise InputInvalid(f"{python} cannot be started: {error.strerror or error}") from error
    return done.returncode
