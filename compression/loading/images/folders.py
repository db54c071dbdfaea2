"""Image folders in an archive: every folder is a class (the rule of torchvision's and Hugging Face's
ImageFolder).

The folders that all images share are left out; the first folder below them is the class, and class numbers
follow the sorted names. Images that all lie in one folder have no class. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from compression.loading.images.headers import FORMATS, NotAnImage, image_header
from compression.loading.images.limits import MAXIMUM_IMAGE_BYTES, Window, refuse, shown
from compression.loading.images.tar_index import tar_entries
from compression.loading.images.zip_index import Entry, first_bytes, located, zip_entries
from compression.loading.sources import FileSource
from compression.suggestions import broken_text

_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")
MAXIMUM_CLASSES = 10_000
MAXIMUM_NAME = 1024


def archive_entries(name: str, source: FileSource) -> list[Entry]:
    """The images in a zip or tar archive, located, in the order of their places.

    Files that are no images by their name, and hidden ones, are passed over. Raises DatasetInvalid, for a
    name that leads out of the archive too, though nothing is ever unpacked under its name.
    """
    zipped = name.lower().endswith(".zip")
    found = zip_entries(name, source) if zipped else tar_entries(name, source)
    entries, seen = [], set[str]()
    for entry in found:
        _check_name(name, entry.name)
        if entry.name in seen:
            refuse(name, f"holds {shown(entry.name)} twice")
        seen.add(entry.name)
        parts = PurePosixPath(entry.name).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts) and is_image_name(
            entry.name
        ):
            entries.append(entry)
    reader = Window(source)
    return [located(name, reader, entry) for entry in entries] if zipped else entries


def is_image_name(path: str) -> bool:
    """Whether a file's name ends like that of an image."""
    return PurePosixPath(path).suffix.lower() in FORMATS


def check_images(name: str, source: FileSource, entries: Sequence[Entry]) -> None:
    """That every entry begins like an image of bearable size. Raises DatasetInvalid that names the first
    other."""
    reader = Window(source)
    for entry in entries:
        if entry.size > MAXIMUM_IMAGE_BYTES:
            refuse(
                name,
                f"{shown(entry.name)} in it has {entry.size:,} bytes, more than the "
                f"{MAXIMUM_IMAGE_BYTES:,} allowed",
            )
        try:
            image_header(lambda count, entry=entry: first_bytes(name, reader, entry, count))  # type: ignore[misc]
        except NotAnImage as error:
            refuse(name, f"{shown(entry.name)} in it {error}")


def folder_classes(name: str, paths: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """(class names sorted, class of each path), or (None, []) when the images lie in no folders of classes.

    Raises DatasetInvalid when some images lie in such folders and others beside them.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    if all(len(parts) == shared for parts in folders):
        return None, []
    for path, parts in zip(paths, folders, strict=True):
        if len(parts) == shared:
            refuse(
                name,
                f"{shown(path)} lies beside the folders of the classes; put every image into the "
                "folder of its class",
            )
    labels = [parts[shared] for parts in folders]
    classes = sorted(set(labels))
    if len(classes) > MAXIMUM_CLASSES:
        refuse(name, f"holds {len(classes):,} folders of classes, more than the {MAXIMUM_CLASSES:,} allowed")
    for label in classes:
        if len(label) > 256:
            refuse(name, f"the name of the class {shown(label)} is longer than 256 characters")
    return classes, labels


def _check_name(name: str, path: str) -> None:
    pure = path.removeprefix("./")
    if (
        not pure
        or len(path) > MAXIMUM_NAME
        or _CONTROL.search(path)
        or broken_text(path)
        or path.startswith("/")
        or ".." in path.split("/")
    ):
        refuse(
            name,
            f"{shown(path)} in it is no valid name: names are relative, without '..', backslashes and "
            "control characters",
        )
