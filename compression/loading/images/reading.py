"""Reads the images of an admitted file one after another, without holding more than a few. For the runner
only.

Nothing is decoded here; what comes out is encoded bytes or, from npz files, arrays.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compression.errors import DatasetInvalid
from compression.loading.images.classes import Label
from compression.loading.images.containers import container_of
from compression.loading.images.folders import archive_entries, folder_classes
from compression.loading.images.limits import MAXIMUM_IMAGE_BYTES, refuse, shown
from compression.loading.images.npz import array_labels, read_arrays
from compression.loading.images.parquet import MAXIMUM_FOOTER, MAXIMUM_GROUP, read_table
from compression.loading.images.zip_index import unpacked
from compression.loading.sources import PathSource

Pixels = NDArray[np.uint8]
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its number in the file, a name for messages, its encoded bytes or its pixels uint8 [h, w,
    c]."""

    number: int
    name: str
    data: bytes | Pixels
    label: Label | None

    def key(self) -> bytes:
        """Identity of the image as it is stored: the first 16 bytes of its sha256."""
        data = self.data if isinstance(self.data, bytes) else self.data.tobytes()
        return hashlib.sha256(data).digest()[:16]


class ImageFile(Protocol):
    """A file with images. `names` are those of the label numbers, in order, where the file gives any."""

    @property
    def names(self) -> list[str] | None: ...

    def rows(self, wanted: Collection[int] | None = None) -> Iterator[Row]:
        """The images with these numbers (None: all) in the order of the file. Raises DatasetInvalid."""
        ...


def open_images(path: Path) -> ImageFile:
    """The images of an admitted file. Raises DatasetInvalid."""
    kind = container_of(path.name)
    if kind == "parquet":
        return _Table(path)
    return _Arrays(path) if kind == "npz" else _Folders(path)


class _Folders:
    def __init__(self, path: Path) -> None:
        self._name, self._source = path.name, PathSource(path)
        self._entries = archive_entries(path.name, self._source)
        self.names, self._labels = folder_classes(path.name, [entry.name for entry in self._entries])

    def rows(self, wanted: Collection[int] | None = None) -> Iterator[Row]:
        for number, entry in enumerate(self._entries):
            if wanted is not None and number not in wanted:
                continue
            if entry.size > MAXIMUM_IMAGE_BYTES:
                refuse(self._name, f"{shown(entry.name)} in it is too large")
            data = b"".join(unpacked(self._name, self._source, entry))
            label = self._labels[number] if self.names is not None else None
            yield Row(number, f"{shown(entry.name)} in {self._name}", data, label)


class _Arrays:
    names: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self._name, self._source = path.name, PathSource(path)
        self._arrays = read_arrays(path.name, self._source)
        self._labels: array[int] | None = None
        if self._arrays.labels is not None:
            self._labels = array("q", array_labels(path.name, self._source, self._arrays))

    def rows(self, wanted: Collection[int] | None = None) -> Iterator[Row]:
        for number, raw in self._raw(wanted):
            pixels = np.frombuffer(raw, np.uint8).reshape(self._arrays.shape)
            if pixels.ndim == 2:
                pixels = pixels[:, :, None]
            elif self._arrays.channels_first:
                pixels = pixels.transpose(1, 2, 0)
            label = None if self._labels is None else int(self._labels[number])
            yield Row(number, f"image {number} of {self._name}", pixels, label)

    def _raw(self, wanted: Collection[int] | None) -> Iterator[tuple[int, bytes]]:
        """The bytes of each image: in place where they are not packed, else while everything is unpacked."""
        size, entry, skip = int(np.prod(self._arrays.shape)), self._arrays.entry, self._arrays.header.offset
        if not entry.deflated:
            for number in range(self._arrays.rows):
                if wanted is None or number in wanted:
                    data = self._source.read(entry.offset + skip + number * size, size)
                    if len(data) != size:
                        refuse(self._name, "cut off")
                    yield number, data
            return
        buffer, number = bytearray(), 0
        for piece in unpacked(self._name, self._source, entry):
            buffer += piece
            if skip:
                dropped = min(skip, len(buffer))
                del buffer[:dropped]
                skip -= dropped
            start = 0
            while not skip and len(buffer) - start >= size and number < self._arrays.rows:
                if wanted is None or number in wanted:
                    yield number, bytes(buffer[start : start + size])
                start += size
                number += 1
            del buffer[:start]


class _Table:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = read_table(path.name, PathSource(path))
        self.names = self._facts.classes

    def rows(self, wanted: Collection[int] | None = None) -> Iterator[Row]:
        import pyarrow
        from pyarrow import parquet

        # Arrow's own allocator sets memory aside, which a runner with a limit may not have.
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        number = 0
        try:
            file = parquet.ParquetFile(
                self._path,
                memory_map=False,
                pre_buffer=False,
                thrift_string_size_limit=MAXIMUM_FOOTER,
                thrift_container_size_limit=1_000_000,
            )
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if wanted is None or any(row in wanted for row in range(number, number + count)):
                    yield from self._group(file, group, number, wanted)
                number += count
        except (pyarrow.ArrowException, OSError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
                raise
            raise DatasetInvalid(
                f"{self._path.name}: cannot be read: it is damaged, or not what its footer says."
            ) from None
        if number != self._facts.rows:
            refuse(self._path.name, f"holds {number:,} rows, its footer says {self._facts.rows:,}")

    def _group(self, file: Any, group: int, first: int, wanted: Collection[int] | None) -> Iterator[Row]:
        image, label = self._facts.image, self._facts.label
        columns = [".".join(image), *([] if label is None else [".".join(label)])]
        number, held = first, 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
            held += batch.nbytes
            if held > 2 * MAXIMUM_GROUP:
                refuse(self._path.name, "unpacks to more than its footer says")
            data = batch.column(image[0])
            if len(image) == 2:
                data = data.field(image[1])
            labels = [None] * batch.num_rows if label is None else batch.column(label[0]).to_pylist()
            for place in range(batch.num_rows):
                if wanted is None or number in wanted:
                    yield self._row(number, data[place].as_py(), labels[place])
                number += 1
        if number - first != file.metadata.row_group(group).num_rows:
            refuse(self._path.name, "holds another number of rows than its footer says")

    def _row(self, number: int, data: bytes | None, label: Label | None) -> Row:
        name = f"image {number} of {self._path.name}"
        if data is None:
            refuse(name, "has no bytes (a path alone leads nowhere here): write the images into the file")
        if len(data) > MAXIMUM_IMAGE_BYTES:
            refuse(name, f"has {len(data):,} bytes, more than the {MAXIMUM_IMAGE_BYTES:,} allowed")
        return Row(number, name, data, label)
