"""Turning pickled weights into safetensors and networks into ONNX, on the user's own machine and in the
user's own
Python."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from secateur.errors import InputInvalid


def is_graph(source: str) -> bool:
    """Whether a source is to become ONNX: MODULE:FACTORY, or a .pt2 file."""
    return source.endswith(".pt2") or (":" in source and not Path(source).exists())


def is_classifier(source: str) -> bool:
    """Whether a source is a folder with an image classifier of transformers or timm, its weights as
    safetensors."""
    folder = Path(source)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict) or not any(folder.glob("*.safetensors")):
        return False
    names = config.get("architectures") or []
    named = isinstance(names, list) and any("ForImageClassification" in str(name) for name in names)
    return named or (isinstance(config.get("architecture"), str) and "architectures" not in config)


def run_classifier(source: Path, out: Path, inputs: Sequence[str], python: str | None = None) -> int:
    """Turn a folder with an image classifier into the folder `out` with ONNX, and check it as the service
    would. The exit status is that of the converter or of the check; `out` is written where both are 0.

    Raises: InputInvalid when `out` does not fit, or the converter or the interpreter is not there.
    """
    if out.suffix == ".onnx":
        raise InputInvalid(
            f"{out} must be a folder: beside the graph it gets the names of the classes and how images "
            "become its input."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputInvalid(f"{out} is there already; name a new folder.")
    work = out.with_name(f".{out.name}.converting")
    shutil.rmtree(work, ignore_errors=True)
    try:
        options = [part for each in inputs for part in ("--input", each)]
        status = _start(python, str(_script("convert_images.py")), str(source), str(work), *options)
        status = status or _start(None, "-m", "compression.loading.onnx", str(work))
        if status == 0:
            if out.exists():
                out.rmdir()
            work.rename(out)
    except OSError as error:
        raise InputInvalid(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return status


def run(source: Path, destination: Path, python: str | None = None) -> int:
    """Turn pickled weights into a safetensors folder; the exit status of the converter.

    The converter is a process of its own: it needs torch and safetensors, which this package does not import.
    `python` names another interpreter that has them; its text goes to this process's standard streams.

    Raises: InputInvalid when the converter or the interpreter is not there.
    """
    return _start(python, str(_script("convert.py")), str(source), str(destination))


def run_graph(
    source: str, out: Path, weights: Path | None, inputs: Sequence[str], python: str | None = None
) -> int:
    """Turn MODULE:FACTORY or a .pt2 file into the ONNX file `out`, and check it as the service would.

    Runs the user's code, and code in a .pt2: in a process of its own, with torch, onnx and onnxscript. The
    exit status is that of the converter or of the check; `out` is written where both are 0.

    Raises: InputInvalid when `out` does not fit, or the converter or the interpreter is not there.
    """
    if out.suffix != ".onnx":
        raise InputInvalid(f"{out} must end with .onnx.")
    script = _script("convert_graph.py")
    data = out.with_name(out.name + ".data")
    for path in (out, data):
        if path.exists():
            raise InputInvalid(f"{path} is there already; name a new file.")
    work = out.with_name(f".{out.name}.converting")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        options = ["--weights", str(weights)] if weights else []
        options += [part for each in inputs for part in ("--input", each)]
        status = _start(python, str(script), source, str(work / out.name), *options)
        status = status or _start(None, "-m", "compression.loading.onnx", str(work))
        if status == 0:
            for path in (data, out):
                if (work / path.name).exists():
                    (work / path.name).rename(path)
    except OSError as error:
        raise InputInvalid(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return status


def _script(name: str) -> Path:
    package = importlib.util.find_spec("compression")
    places = list(package.submodule_search_locations or []) if package else []
    scripts = [Path(place) / "loading" / name for place in places]
    script = next((path for path in scripts if path.is_file()), None)
    if script is None:
        raise InputInvalid(f"This installation lacks the converter (compression/loading/{name}).")
    return script


def _start(python: str | None, *arguments: str) -> int:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run([python or sys.executable, *arguments], env=environment, check=False)
    except OSError as error:
        raise InputInvalid(f"{python} cannot be started: {error.strerror or error}") from error
    return done.returncode
