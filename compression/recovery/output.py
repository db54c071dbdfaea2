"""Writes what a recovery changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from compression.loading.weights import WeightReader
from compression.recovery.types import RecoveryContext

_PART_BYTES = 2 * 1024**3


def write_weights(
    context: RecoveryContext, weights: Iterator[tuple[str, Tensor]]
) -> tuple[list[str], list[Path]]:
    """Write (name, tensor) pairs under ``context.output``, about 2 GiB of them in memory at a time.

    Each is cast to the dtype it is stored in. Returns the names and the files. A pruned weight that is not
    zero would be a fault of this engine and raises AssertionError.
    """
    context.output.mkdir(parents=True, exist_ok=True)
    stored = WeightReader(context.pruned)
    names: list[str] = []
    files: list[Path] = []
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        mask = context.masks.get(name)
        value = tensor.detach().to(stored.dtype(name)).cpu().contiguous()
        if mask is not None and bool((value[~mask.cpu()] != 0).any()):
            raise AssertionError(f"recovery would fill pruned weights of {name}")
        held[name] = value
        names.append(name)
        size += value.numel() * value.element_size()
        if size >= _PART_BYTES:
            files.append(_flush(context.output, len(files), held))
            held, size = {}, 0
    if held:
        files.append(_flush(context.output, len(files), held))
    return names, files


def _flush(folder: Path, number: int, tensors: dict[str, Tensor]) -> Path:
    path = folder / f"recovered-{number:05d}.safetensors"
    save_file(tensors, path)
    return path
