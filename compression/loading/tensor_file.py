"""A safetensors file whose tensors are read into memory of their own.

The library maps files: every page that was ever looked at then counts as resident memory of the process,
and a model that streams through ends up in memory whole. Reading costs one copy and leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from compression.loading.safetensors_header import TensorHeader, read_header
from compression.loading.sources import PathSource

CODES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class TensorSlice:
    """What the header says of one tensor."""

    header: TensorHeader

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.header.shape)

    def get_dtype(self) -> str:
        """Its dtype as the format's code (F32, BF16, ...)."""
        return self.header.dtype


class TensorFile:
    """The tensors of one file by name. Raises SafetensorsInvalid for a file that is none."""

    def __init__(self, path: Path) -> None:
        self._tensors = dict(read_header(PathSource(path), path.name).tensors)
        self._file = path.open("rb", buffering=0)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def get_slice(self, name: str) -> TensorSlice:
        """What the header says of a tensor; KeyError if there is none of this name."""
        return TensorSlice(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        """One tensor, in memory that belongs to it. KeyError; OSError if the file was cut short."""
        shape = self._tensors[name].shape
        return self.get_range(name, 0, prod(shape)).reshape(shape)

    def get_range(self, name: str, start: int, count: int) -> Tensor:
        """`count` elements of a tensor in row-major order from element `start` on; errors as above."""
        header = self._tensors[name]
        width = CODES[header.dtype].itemsize
        raw = torch.empty(count * width, dtype=torch.uint8)
        if count:
            view = memoryview(raw.numpy())  # type: ignore[arg-type]
            at = header.offsets[0] + start * width
            while len(view):
                count = os.preadv(self._file.fileno(), [view], at)
                if count == 0:
                    raise OSError(f"{header.file} ends before tensor {name!r} does")
                view, at = view[count:], at + count
        return raw.view(CODES[header.dtype])
