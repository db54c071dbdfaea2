"""What a file with images holds, whatever it is packed in. No torch and no image library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compression.errors import DatasetFormatUnknown
from compression.loading.images.classes import Label
from compression.loading.images.folders import archive_entries, check_images, folder_classes
from compression.loading.images.limits import shown
from compression.loading.images.npz import distinct_labels, read_arrays
from compression.loading.images.parquet import read_table
from compression.loading.sources import FileSource

FORMATS = (".parquet", ".npz", ".zip", ".tar")
Container = Literal["parquet", "npz", "zip", "tar"]


@dataclass(frozen=True)
class ImageFacts:
    """How many images, and their labels: None without any; names in the order of their numbers; numbers that
    occur; an empty list where only reading the file would tell."""

    rows: int
    labels: list[Label] | None


def is_image_file(name: str) -> bool:
    """Whether a file's name is that of a dataset of images."""
    return name.lower().endswith(FORMATS)


def container_of(name: str) -> Container:
    """What a file is packed in, by its name. Raises DatasetFormatUnknown."""
    kinds: dict[str, Container] = {".parquet": "parquet", ".npz": "npz", ".zip": "zip", ".tar": "tar"}
    for ending, kind in kinds.items():
        if name.lower().endswith(ending):
            return kind
    raise DatasetFormatUnknown(f"{shown(name)}: images come as {', '.join(FORMATS)}.")


def look(name: str, source: FileSource) -> ImageFacts:
    """What a file holds, from headers, footers and tables of contents; of archives every image's first bytes,
    of npz files all labels. `name` gives the container. Raises DatasetInvalid."""
    kind = container_of(name)
    if kind == "parquet":
        table = read_table(name, source)
        labels: list[Label] | None = None if table.label is None else list(table.classes or [])
        return ImageFacts(table.rows, labels)
    if kind == "npz":
        arrays = read_arrays(name, source)
        numbers = None if arrays.labels is None else distinct_labels(name, source, arrays)
        return ImageFacts(arrays.rows, None if numbers is None else list(numbers))
    entries = archive_entries(name, source)
    check_images(name, source, entries)
    classes, _ = folder_classes(name, [entry.name for entry in entries])
    return ImageFacts(len(entries), None if classes is None else list(classes))
