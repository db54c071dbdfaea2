"""Datasets of images as batches: calibration, evaluation and recovery (see `compression.loading.data` for
text).

Images are decoded once, by a few threads, and kept as they are after resizing and cropping (one byte a
value), in memory up to MEMORY_BYTES and beyond that in a temporary file; a batch becomes float32 when it is
asked for.
"""

from __future__ import annotations

import hashlib
import os
import random
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from compression.errors import DatasetInsufficient, DatasetInvalid
from compression.loading.data import HELD_OUT, class_names
from compression.loading.hidden import HiddenStates, Room
from compression.loading.images.classes import Label, class_numbers
from compression.loading.images.pixels import decode, normalise, prepare
from compression.loading.images.reading import ImageFile, Row, open_images
from compression.loading.images.streaming import StreamedImages, stream
from compression.preprocessing import Preprocessing

Batch = dict[str, Tensor]
TASK = "image-classification"
MEMORY_BYTES = 512 << 20
EVALUATION_BATCH = 16
_AT_ONCE = 32
_THREADS = 4
_GONE = torch.empty(0, dtype=torch.uint8)


class PixelBatches(Sequence[Batch]):
    """Batches {"pixel_values": float32 [b, c, h, w], "labels": int64 [b]} made when they are asked for,
    always the same; a slice of it is another view of the same images. Without labels their key is missing."""

    def __init__(
        self,
        pixels: Sequence[Tensor],
        labels: Sequence[Tensor] | None,
        how: Preprocessing,
        places: range | None = None,
    ) -> None:
        self._pixels, self._labels, self._how = pixels, labels, how
        self._places = range(len(pixels)) if places is None else places
        # The one that was asked for last: many look at the same batch before they go on to the next.
        self._last: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> PixelBatches: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PixelBatches(self._pixels, self._labels, self._how, self._places[index])
        place = self._places[index]
        if self._last is None or self._last[0] != place:
            batch = {"pixel_values": normalise(self._pixels[place], self._how)}
            if self._labels is not None:
                batch["labels"] = self._labels[place]
            self._last = place, batch
        return dict(self._last[1])


@dataclass(frozen=True)
class Images:
    """Images of one use of a dataset, as batches. `labels` names the classes; `texts` are the keys of the
    images."""

    task: str
    batches: Sequence[Batch]
    labels: tuple[str, ...] | None
    sequences: int
    digest: str
    texts: frozenset[bytes] = field(repr=False, default=frozenset())

    def facts(self) -> dict[str, Any]:
        """What the report says of it: how many there were and the hash of their pixels and labels."""
        return {"images": self.sequences, "sha256": self.digest}


@dataclass(frozen=True)
class TrainingImages:
    """Images to learn from, addressed by number: `batch(indices)` depends on nothing but its indices."""

    pixels: Sequence[Tensor]
    labels: tuple[int, ...] | None
    how: Preprocessing
    digest: str
    texts: frozenset[bytes] = field(repr=False, default=frozenset())

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """pixel_values float32 [b, c, h, w]; labels int64 [b] where all images have one."""
        stacked = torch.cat([self.pixels[index] for index in indices])
        batch = {"pixel_values": normalise(stacked, self.how)}
        if self.labels is not None:
            batch["labels"] = torch.tensor([self.labels[index] for index in indices], dtype=torch.int64)
        return batch

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"images": len(self.pixels), "sha256": self.digest}


class ImageCorpus:
    """The images of one file: their keys and labels, after one pass over it, and which belong to which
    part."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.file: ImageFile = open_images(path)
        self._keys = bytearray()
        self._labels: list[Label | None] = []
        for row in self.file.rows():
            self._keys += row.key()
            self._labels.append(row.label)
        self.labelled = bool(self._labels) and all(label is not None for label in self._labels)
        self.names = self.file.names
        words = {label for label in self._labels if isinstance(label, str)}
        if self.names is None and words:
            self.names = sorted(words)

    def key(self, number: int) -> bytes:
        """The key of an image."""
        return bytes(self._keys[16 * number : 16 * number + 16])

    def label(self, number: int) -> Label | None:
        """The label of an image as the file has it."""
        return self._labels[number]

    def part(self, part: str) -> list[int]:
        """Numbers in file order: "all", "held-out" (a fifth of the distinct images, by hash) or "rest".

        Raises DatasetInsufficient when there is nothing to divide.
        """
        numbers = range(len(self._labels))
        if part == "all":
            return list(numbers)
        keys = sorted({self.key(number) for number in numbers})
        if len(keys) < 2:
            raise DatasetInsufficient(
                "a dataset with a single image cannot be divided into a part to calibrate on and a "
                "part to evaluate "
                "on; give evaluation.dataset another dataset"
            )
        threshold = keys[max(1, len(keys) // HELD_OUT) - 1]
        return [number for number in numbers if (self.key(number) <= threshold) == (part == "held-out")]

    def sample(self, part: str, seed: int | None, count: int) -> list[int]:
        """At most `count` numbers of a part, chosen by a hash of the image and the seed, in the order of that
        hash.

        Archives list one class after another, so the first images of a file would be no fair sample.
        """
        prefix = b"" if seed is None else str(seed).encode() + b":"

        def rank(number: int) -> tuple[bytes, int]:
            key = self.key(number)
            return (key if seed is None else hashlib.sha256(prefix + key).digest()), number

        return sorted(self.part(part), key=rank)[:count]


class ImagePlan:
    """Reads the datasets of a job for one model of images and gives them as batches.

    `config` is the admitted configuration, `channels` and `how` what its images are like, `datasets` maps
    dataset ids to files. Of the datasets `held_out`, evaluation gets a fifth of the images, and every
    other use the rest.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        channels: int,
        how: Preprocessing,
        datasets: Mapping[str, Path],
        *,
        held_out: Collection[str] = (),
    ) -> None:
        self._names = class_names(config)
        self._channels, self._how = channels, how
        self._paths = dict(datasets)
        self._corpora: dict[str, ImageCorpus] = {}
        self._held_out = frozenset(held_out)

    def calibration(self, dataset: str, samples: int, length: int, seed: int, batch_size: int) -> Images:
        """`samples` images chosen by `seed`, fewer if there are not as many; `length` means nothing for
        images.

        Raises DatasetInvalid, DatasetInsufficient.
        """
        corpus = self._corpus(dataset)
        numbers = corpus.sample("rest" if dataset in self._held_out else "all", seed, samples)
        return self._images(dataset, numbers, batch_size, "calibration", labelled=corpus.labelled)

    def evaluation(
        self, dataset: str, samples: int | None, length: int, batch_size: int = EVALUATION_BATCH
    ) -> Images:
        """At most `samples` images (None: all) of the dataset, or of its held-out fifth, always the same, in
        file order, with their labels. Raises DatasetInvalid, DatasetInsufficient."""
        corpus = self._corpus(dataset)
        part = "held-out" if dataset in self._held_out else "all"
        numbers = corpus.part(part) if samples is None else sorted(corpus.sample(part, None, samples))
        return self._images(dataset, numbers, batch_size, "evaluation", labelled=True)

    def training(self, dataset: str, rows: int, length: int, seed: int) -> TrainingImages:
        """Up to `rows` images to learn from, in an order chosen by `seed`, with class numbers where all have
        one.

        Raises DatasetInvalid, DatasetInsufficient.
        """
        corpus = self._corpus(dataset)
        numbers = corpus.sample("rest" if dataset in self._held_out else "all", seed, rows)
        random.Random(seed).shuffle(numbers)
        labels = self._classes(corpus, numbers) if corpus.labelled else None
        pixels, digest = self._pixels(corpus, numbers, 1, "recovery", labels)
        keys = frozenset(corpus.key(number) for number in numbers)
        return TrainingImages(pixels, None if labels is None else tuple(labels), self._how, digest, keys)

    def streamed(self, dataset: str, rows: int, seed: int) -> StreamedImages:
        """The images that `training` gives, in the same order, decoded while a model learns from them.

        Raises DatasetInvalid, DatasetInsufficient.
        """
        corpus = self._corpus(dataset)
        numbers = corpus.sample("rest" if dataset in self._held_out else "all", seed, rows)
        if not numbers:
            raise DatasetInsufficient(
                f"the dataset {corpus.name} has no image that could be used for recovery"
            )
        random.Random(seed).shuffle(numbers)
        labels = self._classes(corpus, numbers) if corpus.labelled else None
        return stream(corpus.name, corpus.file, numbers, labels, self._channels, self._how)

    def _corpus(self, dataset: str) -> ImageCorpus:
        if dataset not in self._paths:
            raise DatasetInvalid(f"there is no dataset {dataset!r}")
        if dataset not in self._corpora:
            self._corpora[dataset] = ImageCorpus(self._paths[dataset])
        return self._corpora[dataset]

    def _images(
        self, dataset: str, numbers: list[int], batch_size: int, use: str, *, labelled: bool
    ) -> Images:
        corpus = self._corpus(dataset)
        labels = self._classes(corpus, numbers) if labelled else None
        pixels, digest = self._pixels(corpus, numbers, batch_size, use, labels)
        grouped = None
        if labels is not None:
            grouped = torch.split(torch.tensor(labels, dtype=torch.int64), batch_size)
        return Images(
            task=TASK,
            batches=PixelBatches(pixels, grouped, self._how),
            labels=self._names,
            sequences=len(numbers),
            digest=digest,
            texts=frozenset(corpus.key(number) for number in numbers),
        )

    def _pixels(
        self, corpus: ImageCorpus, numbers: list[int], batch_size: int, use: str, labels: Sequence[int] | None
    ) -> tuple[HiddenStates, str]:
        """The images of these numbers in their order, uint8 [b, c, h, w] each batch, and the hash of all."""
        if not numbers:
            raise DatasetInsufficient(f"the dataset {corpus.name} has no image that could be used for {use}")
        # Written once and read once, so mostly to the file.
        made = HiddenStates(room=Room(MEMORY_BYTES // 8))
        places = {number: place for place, number in enumerate(numbers)}
        single: list[int] = []
        for number, pixels in self._decoded(corpus, places):
            single.append(places[number])
            made.append(pixels[None])
        order = sorted(range(len(single)), key=single.__getitem__)
        if len(order) != len(numbers):
            raise DatasetInvalid(f"{corpus.name}: changed while it was read.")
        digest = hashlib.sha256()
        grouped = HiddenStates(room=Room(MEMORY_BYTES))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = torch.cat([made[place] for place in chosen])
            for place in chosen:
                made[place] = _GONE
            digest.update(repr(tuple(batch.shape)).encode())
            digest.update(batch.numpy().tobytes())
            grouped.append(batch)
        digest.update(array("q", labels or []).tobytes())
        return grouped, digest.hexdigest()

    def _decoded(self, corpus: ImageCorpus, wanted: Mapping[int, int]) -> Iterator[tuple[int, Tensor]]:
        """(number, uint8 [c, h, w]) of the wanted images, decoded by a few threads, a few images ahead."""

        def one(row: Row) -> tuple[int, Tensor]:
            return row.number, torch.from_numpy(prepare(decode(row, self._channels), self._how))

        rows = corpus.file.rows(wanted)
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "decode") as pool:
            while chunk := list(islice(rows, _AT_ONCE)):
                yield from pool.map(one, chunk)

    def _classes(self, corpus: ImageCorpus, numbers: Sequence[int]) -> list[int]:
        """The class number of each image. Raises DatasetInvalid for one that is no class of the model."""
        try:
            known = None if corpus.names is None else class_numbers(corpus.names, self._names)
        except ValueError as error:
            raise DatasetInvalid(f"{corpus.name}: {error}.") from None
        return [self._class(corpus, number, known) for number in numbers]

    def _class(self, corpus: ImageCorpus, number: int, known: Mapping[str, int] | None) -> int:
        label = corpus.label(number)
        if (
            isinstance(label, int)
            and known is not None
            and corpus.names is not None
            and 0 <= label < len(known)
        ):
            return known[corpus.names[label]]
        if isinstance(label, str) and known is not None and label in known:
            return known[label]
        if isinstance(label, int) and known is None and 0 <= label < len(self._names):
            return label
        told = "no label" if label is None else f"the label {str(label)[:80]!r}"
        raise DatasetInvalid(
            f"{corpus.name}: image {number} has {told}, but the model's classes are 0 to "
            f"{len(self._names) - 1}."
        )
