"""Fixed inputs with the outputs that are expected for them, and what a process knows of its own memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compression.device import cpu_name
from compression.evaluation import nursery
from compression.evaluation.memory import memory_now, memory_peak
from compression.evaluation.types import Batch, model_inputs
from compression.export.writer import Entry, write_file

__all__ = [
    "ChildFailed",
    "Fixed",
    "child",
    "child_environment",
    "device_name",
    "device_peak",
    "memory_now",
    "memory_peak",
    "memory_report",
    "read_inputs",
    "write_inputs",
]


@dataclass(frozen=True)
class Fixed:
    """Batches of token ids, and the outputs of the evaluation path for them (none: nothing to compare)."""

    task: str
    batches: tuple[Batch, ...]
    outputs: tuple[Tensor, ...]


def write_inputs(path: Path, batches: Sequence[Batch], outputs: Sequence[Tensor], task: str) -> Path:
    """Write batches (labels left out) and their outputs as one safetensors file; returns its path."""
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        tensors |= {f"{number}/in/{name}": value for name, value in model_inputs(batch).items()}
    for number, output in enumerate(outputs):
        tensors[f"{number}/out"] = output
    entries = [Entry(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    write_file(path, entries, lambda name: tensors[name], {"task": task, "batches": str(len(batches))})
    return path


def read_inputs(path: Path) -> Fixed:
    """Read what ``write_inputs`` wrote."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
        batches, outputs = [], []
        for number in range(int(metadata["batches"])):
            start = f"{number}/in/"
            batches.append(
                {name.removeprefix(start): file.get_tensor(name) for name in names if name.startswith(start)}
            )
            if f"{number}/out" in names:
                outputs.append(file.get_tensor(f"{number}/out"))
    return Fixed(metadata["task"], tuple(batches), tuple(outputs))


def device_peak(device: str) -> int | None:
    """The most bytes that tensors took on an accelerator; None on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.startswith("cuda") else None


def memory_report(before: int, device: str) -> dict[str, Any]:
    """``process_bytes`` (peak), ``import_bytes`` (before the model was loaded), ``model_bytes`` (difference),
    ``device_bytes`` (peak on the accelerator, or None)."""
    peak = memory_peak()
    return {
        "process_bytes": peak,
        "import_bytes": before,
        "model_bytes": max(0, peak - before),
        "device_bytes": device_peak(device),
    }


class ChildFailed(RuntimeError):
    """A measuring or verifying process ended badly; ``detail`` is the end of what it said."""

    def __init__(self, returncode: int, detail: str) -> None:
        super().__init__(f"process ended with {returncode}: {detail}")
        self.returncode = returncode
        self.detail = detail


def child_environment(threads: int) -> dict[str, str]:
    """The environment of processes that load artifacts: this process's, offline, with so many threads."""
    return dict(os.environ) | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def child(module: str, arguments: Sequence[str], *, threads: int, interpreter: bool = True) -> dict[str, Any]:
    """Run ``python -m module arguments`` with so many threads and give the JSON of its last line.

    Nothing of this process's memory is in it. With ``interpreter`` it is a new one, which whatever counts
    its own memory needs; else a fork of one that has imported the loader and done nothing else, which a
    process that asks more than once starts only once. Raises ChildFailed.
    """
    environment = child_environment(threads)
    status, output, errors = (
        _started(module, arguments, environment)
        if interpreter or sys.platform != "linux"
        else _forked(module, arguments, threads, environment)
    )
    lines = output.strip().splitlines()
    if status != 0 or not lines:
        raise ChildFailed(status, " ".join(errors.strip().splitlines()[-3:])[-600:])
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _started(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    finished = subprocess.run(  # noqa: S603
        [sys.executable, "-m", module, *arguments], capture_output=True, env=dict(environment), check=False
    )
    output, errors = (part.decode(errors="replace") for part in (finished.stdout, finished.stderr))
    return finished.returncode, output, errors


def _forked(
    module: str, arguments: Sequence[str], threads: int, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    try:
        return nursery.nursery(threads, environment).run(module, arguments)
    except nursery.NurseryGone:
        # Whatever ended it (memory, a signal), a new interpreter says what is wrong in its own words.
        nursery.forget(threads)
        return _started(module, arguments, environment)


def device_name(device: str) -> str:
    """Name of the device that figures were measured on."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
