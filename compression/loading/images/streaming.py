"""Images to learn from, decoded when they are wanted. For the runner only.

`plan.TrainingImages` decodes everything before the first step. Here the images wait as they are stored (in
memory up to ENCODED_BYTES, beyond that in a temporary file), threads decode them for the steps to come while
the present one is computed, and what is decoded is kept, one byte a value, as long as all of it fits into
DECODED_BYTES.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compression.errors import DatasetInvalid
from compression.loading.hidden import HiddenStates, Room
from compression.loading.images.augmentation import Augmentation
from compression.loading.images.pixels import decode, normalise, prepare
from compression.loading.images.reading import ImageFile, Pixels, Row
from compression.preprocessing import Preprocessing

ENCODED_BYTES = 256 << 20
DECODED_BYTES = 512 << 20
Batch = dict[str, Tensor]
Decode = Callable[[Row], Pixels]


@dataclass(frozen=True)
class _Stored:
    """What is known of a stored image besides its bytes; `shape` is that of pixels, None for a file."""

    name: str
    shape: tuple[int, ...] | None


class StreamedImages:
    """Images addressed by number, uint8 until they become a batch. `labels` are class numbers, None where not
    all images have one; `texts` are the keys of the images; `digest` is the hash of the images as they are
    stored, in their order, and of the labels.

    Several threads may ask at once. A damaged image is found when it is decoded: DatasetInvalid names it.
    """

    def __init__(
        self,
        stored: Sequence[Tensor],
        known: Sequence[_Stored],
        labels: Sequence[int] | None,
        keys: Sequence[bytes],
        decode_row: Decode,
        how: Preprocessing,
        decoded_bytes: int = DECODED_BYTES,
    ) -> None:
        self.labels = None if labels is None else tuple(labels)
        self.texts = frozenset(keys)
        self._stored, self._known, self._decode, self._how = stored, known, decode_row, how
        self._limit = decoded_bytes
        self._keeps: bool | None = None
        self._kept: dict[int, Pixels] = {}
        self._lock = threading.Lock()
        hashed = hashlib.sha256(b"".join(keys))
        hashed.update(array("q", self.labels or ()).tobytes())
        self.digest = hashed.hexdigest()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def decoded_once(self) -> bool:
        """Whether decoded images are kept, as all of them fit."""
        return bool(self._keeps)

    def pixels(self, number: int) -> Pixels:
        """One image after resizing and cropping, uint8 [c, h, w]; not to be written to."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        known, data = self._known[number], self._stored[number].numpy()
        content: Any = data.tobytes() if known.shape is None else data.reshape(known.shape)
        found = self._decode(Row(number, known.name, content, None))
        with self._lock:
            if self._keeps is None:
                # All have the size of the model's input.
                self._keeps = found.nbytes * len(self) <= self._limit
            if self._keeps:
                self._kept[number] = found
        return found

    def batch(self, indices: Sequence[int]) -> Batch:
        """pixel_values float32 [b, c, h, w]; labels int64 [b] where all images have one."""
        return self._batch([self.pixels(index) for index in indices], indices)

    def augmented(
        self, indices: Sequence[int], epochs: Sequence[int], augmentation: Augmentation, seed: int
    ) -> Batch:
        """The same with every image changed as in its epoch."""
        found = [
            augmentation.apply(self.pixels(index), seed, epoch, index)
            for index, epoch in zip(indices, epochs, strict=True)
        ]
        return self._batch(found, indices)

    def _batch(self, pixels: Sequence[Pixels], indices: Sequence[int]) -> Batch:
        stacked = torch.from_numpy(np.stack(pixels))
        batch = {"pixel_values": normalise(stacked, self._how)}
        if self.labels is not None:
            batch["labels"] = torch.tensor([self.labels[index] for index in indices], dtype=torch.int64)
        return batch

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"images": len(self), "sha256": self.digest}


@dataclass
class _Taken:
    """Images that were read so far, in the order of the file."""

    data: HiddenStates = field(default_factory=lambda: HiddenStates(room=Room(ENCODED_BYTES)))
    known: dict[int, tuple[int, _Stored, bytes]] = field(default_factory=dict)


class _InOrder(Sequence[Tensor]):
    """Stored images by their place among those that were chosen."""

    def __init__(self, data: HiddenStates, order: Sequence[int]) -> None:
        self._data, self._order = data, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        return self._data[self._order[index]]


def stream(
    name: str,
    file: ImageFile,
    numbers: Sequence[int],
    labels: Sequence[int] | None,
    channels: int,
    how: Preprocessing,
) -> StreamedImages:
    """The images with these numbers of a file, in this order, read once and decoded later. `name` is the
    file's. Raises DatasetInvalid."""
    taken, wanted = _Taken(), set(numbers)
    for row in file.rows(wanted):
        raw, shape = row.data, None
        if not isinstance(raw, bytes):
            shape = raw.shape
            raw = np.ascontiguousarray(raw).tobytes()
        taken.known[row.number] = len(taken.data), _Stored(row.name, shape), row.key()
        taken.data.append(torch.from_numpy(np.frombuffer(raw, np.uint8).copy()))
    if taken.known.keys() != wanted:
        raise DatasetInvalid(f"{name}: changed while it was read.")
    found: Mapping[int, tuple[int, _Stored, bytes]] = taken.known

    def decoded(row: Row) -> Pixels:
        return prepare(decode(row, channels), how)

    return StreamedImages(
        _InOrder(taken.data, [found[number][0] for number in numbers]),
        [found[number][1] for number in numbers],
        labels,
        [found[number][2] for number in numbers],
        decoded,
        how,
    )
