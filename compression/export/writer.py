"""Safetensors files, written one tensor at a time and always with the same bytes for the same tensors.

Tensors lie in the order of their dtype's width (widest first, so that each is aligned) and their name; the
header has no dates, no padding but spaces to a multiple of eight, and ``__metadata__`` says ``format: pt``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

SHARD_BYTES = 5_000_000_000

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor to write."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.dtype.itemsize


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor in row-major order (little-endian machines)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().data)


def write_file(
    path: Path,
    entries: Sequence[Entry],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write one file (durable under its final name only when whole); returns its bytes.

    ``read(name)`` gives each tensor when its turn comes; it is cast to the entry's dtype. Raises ValueError
    when a shape is not the one announced.
    """
    ordered, text = _header(entries, metadata)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            tensor = read(entry.name)
            if tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} has shape {tuple(tensor.shape)}, not {entry.shape}")
            file.write(raw(tensor.to(entry.dtype)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return 8 + len(text) + sum(entry.bytes for entry in ordered)


def _header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> tuple[list[Entry], bytes]:
    """Entries in the order of their data, and the header of a file of them."""
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for entry in ordered:
        end = position + entry.bytes
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return ordered, text + b" " * (-len(text) % 8)


def model_bytes(entries: Sequence[Entry], limit: int = SHARD_BYTES) -> int:
    """Bytes of the weight files that `write_model_weights` would write for these entries."""
    return sum(
        8 + len(_header(part, None)[1]) + sum(entry.bytes for entry in part)
        for part in shards(entries, limit)
    )


def shards(entries: Sequence[Entry], limit: int = SHARD_BYTES) -> list[list[Entry]]:
    """Entries in files of at most ``limit`` bytes of data, in the given order; a larger tensor is alone."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.bytes > limit:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.bytes
    return files


def write_model_weights(
    folder: Path,
    entries: Sequence[Entry],
    read: Callable[[str], Tensor],
    *,
    limit: int = SHARD_BYTES,
    after_file: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write ``model.safetensors``, or shards with ``model.safetensors.index.json``, as ``transformers``
    reads them.
    """
    files = shards(entries, limit)
    if len(files) == 1:
        path = folder / "model.safetensors"
        write_file(path, files[0], read)
        after_file(1, 1)
        return [path]
    written = []
    where: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        path = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_file(path, part, read)
        written.append(path)
        where |= dict.fromkeys((entry.name for entry in part), path.name)
        after_file(number, len(files))
    index = {
        "metadata": {
            "total_parameters": sum(prod(entry.shape) for entry in entries),
            "total_size": sum(entry.bytes for entry in entries),
        },
        "weight_map": dict(sorted(where.items())),
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*written, path]
