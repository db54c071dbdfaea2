"""Images as arrays: an .npz file with `images` and, for classes, `labels`. No torch and no NumPy.

`images` is uint8 [n, h, w, c], [n, c, h, w] or [n, h, w] (grey), c being 1 or 3; where that leaves two
readings, the name `images_nhwc` or `images_nchw` says which. `labels` is whole numbers [n]. Other arrays are
passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from compression.loading.images.limits import MAXIMUM_IMAGES, MAXIMUM_PIXELS, MAXIMUM_SIDE, refuse
from compression.loading.images.npy import LONGEST_HEADER, ArrayHeader, array_header
from compression.loading.images.zip_index import Entry, first_bytes, located, unpacked, zip_entries
from compression.loading.sources import FileSource

_NAMES = ("images", "images_nhwc", "images_nchw")
MAXIMUM_CLASSES = 10_000


@dataclass(frozen=True)
class ArrayImages:
    """What an npz file holds: `shape` is that of one image, [h, w, c], [c, h, w] or [h, w]; `channels_first`
    says which of the first two."""

    entry: Entry
    header: ArrayHeader
    labels: tuple[Entry, ArrayHeader] | None
    channels_first: bool

    @property
    def rows(self) -> int:
        """How many images."""
        return self.header.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.header.shape[1:]


def read_arrays(name: str, source: FileSource) -> ArrayImages:
    """What an npz file holds, from its headers. Raises DatasetInvalid."""
    found = {entry.name.removesuffix(".npy"): entry for entry in zip_entries(name, source)}
    given = [key for key in _NAMES if key in found]
    if len(given) != 1:
        listed = ", ".join(repr(key[:40]) for key in islice(found, 8)) or "nothing"
        refuse(
            name,
            "must hold one array 'images' (uint8 [n, h, w, c] or [n, c, h, w]) and 'labels'; it "
            f"holds {listed}",
        )
    entry, header = _array(name, source, found[given[0]])
    _check_images(name, header)
    first = _channels_first(name, header.shape, given[0])
    labels = _array(name, source, found["labels"]) if "labels" in found else None
    if labels is not None and labels[1].shape != header.shape[:1]:
        refuse(
            name, f"'labels' has the shape {list(labels[1].shape)}, but there are {header.shape[0]:,} images"
        )
    return ArrayImages(entry, header, labels, first)


def _array(name: str, source: FileSource, entry: Entry) -> tuple[Entry, ArrayHeader]:
    entry = located(name, source, entry)
    what = repr(entry.name[:80])
    header = array_header(name, what, first_bytes(name, source, entry, LONGEST_HEADER + 64))
    if header.offset + header.bytes != entry.size:
        refuse(
            name,
            f"{what} in it has {entry.size:,} bytes, but its header tells {header.offset + header.bytes:,}",
        )
    return entry, header


def _check_images(name: str, header: ArrayHeader) -> None:
    shape = header.shape
    if header.dtype not in ("|u1", "<u1", ">u1", "=u1"):
        refuse(name, f"'images' has the type {header.dtype!r}; it must be uint8, 0 to 255")
    if len(shape) not in (3, 4):
        refuse(
            name, f"'images' has the shape {list(shape)}; it must be [n, h, w, c], [n, c, h, w] or [n, h, w]"
        )
    if shape[0] > MAXIMUM_IMAGES:
        refuse(name, f"holds {shape[0]:,} images, more than the {MAXIMUM_IMAGES:,} allowed")
    size = 1
    for side in shape[1:]:
        size *= side
    if not size or max(shape[1:]) > MAXIMUM_SIDE or size > 3 * MAXIMUM_PIXELS:
        refuse(name, f"'images' has the shape {list(shape)}; an image has 1 to {MAXIMUM_PIXELS:,} pixels")


def _channels_first(name: str, shape: tuple[int, ...], given: str) -> bool:
    """Whether images are [c, h, w], by the name of the array or by their shape."""
    if len(shape) == 3:
        return False
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if given != "images":
        first, last = first and given.endswith("nchw"), last and given.endswith("nhwc")
    if first == last:
        why = (
            "could be read both ways; call it 'images_nhwc' or 'images_nchw'"
            if first
            else "has no axis of 1 or 3 channels"
        )
        refuse(name, f"{given!r} of shape {list(shape)} {why}")
    return first


def array_labels(name: str, source: FileSource, arrays: ArrayImages) -> Iterator[int]:
    """The class number of each image. Raises DatasetInvalid for a number below 0 or out of bounds."""
    assert arrays.labels is not None
    entry, header = arrays.labels
    width, signed = int(header.dtype[2:]), header.dtype[1] == "i"
    order = "big" if header.dtype[0] == ">" else "little"
    rest, skip = b"", header.offset
    for piece in unpacked(name, source, entry):
        data = rest + piece
        dropped = min(skip, len(data))
        skip, data = skip - dropped, data[dropped:]
        whole = len(data) // width * width
        for at in range(0, whole, width):
            value = int.from_bytes(data[at : at + width], order, signed=signed)  # type: ignore[arg-type]
            if not 0 <= value < 1 << 31:
                refuse(name, f"'labels' holds {value}; labels are class numbers from 0 on")
            yield value
        rest = data[whole:]


def distinct_labels(name: str, source: FileSource, arrays: ArrayImages) -> list[int]:
    """The class numbers that occur, in order. Raises DatasetInvalid."""
    seen: set[int] = set()
    for value in array_labels(name, source, arrays):
        seen.add(value)
        if len(seen) > MAXIMUM_CLASSES:
            refuse(name, f"more than {MAXIMUM_CLASSES:,} different labels; is 'labels' a class?")
    return sorted(seen)
