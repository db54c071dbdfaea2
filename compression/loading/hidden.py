"""Hidden states of many batches: in memory as far as there is room, the rest in a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import IO, Any, overload

import torch
from torch import Tensor

# Hidden states beyond this many bytes live on disk (in the folder for temporary files).
MEMORY_BYTES = 4 << 30


@dataclass
class Room:
    """Bytes that several lists of hidden states may hold in memory together."""

    limit: int
    used: int = 0

    def take(self, size: int) -> bool:
        """Whether so many more bytes fit; if so they are counted."""
        fits = self.used + size <= self.limit
        self.used += size if fits else 0
        return fits


@dataclass(frozen=True)
class _Place:
    """A tensor in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class HiddenStates(MutableSequence[Tensor]):
    """A list of tensors, one a batch. What is read back is equal to what was put in, bit for bit.

    Without a room of its own it makes one of MEMORY_BYTES. Raises OSError when the disk is full.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), room: Room | None = None) -> None:
        self._room = room or Room(MEMORY_BYTES)
        self._items: list[Tensor | _Place] = []
        self._file: IO[bytes] | None = None
        self._end = 0
        self.extend(tensors)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def snapshot(self) -> HiddenStates:
        """Another list of the same tensors that shares this one's room; later changes of one leave the
        other."""
        return HiddenStates(self, self._room)

    def beside(self) -> HiddenStates:
        """An empty list that shares this one's room."""
        return HiddenStates((), self._room)

    def insert(self, index: int, value: Tensor) -> None:
        """As of any list."""
        fits = self._room.take(value.numel() * value.element_size())
        self._items.insert(index, value if fits else self._write(value, self._end))

    def __setitem__(self, index: Any, value: Any) -> None:
        known = self._items[index]
        size = value.numel() * value.element_size()
        if isinstance(known, _Place) and known.shape.numel() * known.dtype.itemsize >= size:
            self._items[index] = self._write(value, known.offset)
        elif isinstance(known, Tensor) and known.numel() * known.element_size() >= size:
            self._items[index] = value
        else:
            fits = self._room.take(size)
            self._items[index] = value if fits else self._write(value, self._end)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> MutableSequence[Tensor]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        item = self._items[index]
        return self._read(item) if isinstance(item, _Place) else item

    def __delitem__(self, index: Any) -> None:
        del self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def _write(self, value: Tensor, offset: int) -> _Place:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="hidden-")
        raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        view, at = memoryview(raw.numpy()), offset  # type: ignore[arg-type]
        while len(view):
            count = os.pwrite(self._file.fileno(), view, at)
            view, at = view[count:], at + count
        self._end = max(self._end, at)
        return _Place(offset, value.shape, value.dtype, value.device)

    def _read(self, place: _Place) -> Tensor:
        assert self._file is not None
        raw = torch.empty(place.shape.numel() * place.dtype.itemsize, dtype=torch.uint8)
        view, at = memoryview(raw.numpy()), place.offset  # type: ignore[arg-type]
        while len(view):
            count = os.preadv(self._file.fileno(), [view], at)
            if count == 0:
                raise OSError("the file of hidden states ends too early")
            view, at = view[count:], at + count
        return raw.view(place.dtype).reshape(place.shape).to(place.device)
