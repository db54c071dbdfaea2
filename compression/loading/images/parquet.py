"""Images in a parquet file, from its footer: which column holds them, which the labels, and whether the
footer can be true. No torch and no pyarrow.

(Format: apache/parquet-format, parquet.thrift.) The layout is that of Hugging Face's datasets: a column
`image`, a structure of `bytes` and `path` or bare bytes, and a column `label` of whole numbers or strings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from compression.loading.images.limits import MAXIMUM_EXPANDED, MAXIMUM_IMAGES, refuse, shown
from compression.loading.images.thrift import Malformed, Reader
from compression.loading.sources import FileSource
from compression.suggestions import broken_text

MAXIMUM_FOOTER = 8 << 20
MAXIMUM_GROUP = 1 << 30
"""Bytes of the images of one row group: a runner holds one at a time."""
MAXIMUM_CLASSES = 10_000

_MAGIC = b"PAR1"
_INT32, _INT64, _BYTES = 1, 2, 6
_CODECS = {0: "none", 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4"}
_IMAGES, _LABELS = ("image", "img", "images"), ("label", "labels")


@dataclass(frozen=True)
class _Leaf:
    """A column: its path, physical type, and whether it is text, repeated, or a level below a structure."""

    path: tuple[str, ...]
    type: int
    text: bool
    flat: bool


@dataclass(frozen=True)
class TableImages:
    """What a parquet file holds. `image` is the path of the column of bytes, `label` that of the labels;
    `classes` are the names that the file gives to label numbers."""

    rows: int
    image: tuple[str, ...]
    label: tuple[str, ...] | None
    classes: list[str] | None


def read_table(name: str, source: FileSource) -> TableImages:
    """What a parquet file holds, from its footer. Raises DatasetInvalid."""
    footer = _footer(name, source)
    try:
        leaves = _leaves(name, footer[2])
        rows, groups, facts = footer[3], footer[4], footer.get(5, [])
        if not isinstance(rows, int) or not isinstance(groups, list):
            raise Malformed("rows")
        image, label = _image_column(name, leaves), _label_column(name, leaves)
        _check_groups(name, source, rows, groups, leaves, image)
        classes = _class_names(facts, label) if label is not None and label.type != _BYTES else None
    except (Malformed, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError):
        refuse(name, "its footer is damaged")
    return TableImages(rows, image.path, None if label is None else label.path, classes)


def _footer(name: str, source: FileSource) -> dict[int, Any]:
    size = source.size
    if size < 12:
        refuse(name, "no parquet file, or one that is cut off")
    tail = source.read(size - 8, 8)
    if source.read(0, 4) != _MAGIC or tail[4:] != _MAGIC:
        encrypted = tail[4:] == b"PARE"
        refuse(
            name,
            "encrypted parquet is not taken in" if encrypted else "no parquet file, or one that is cut off",
        )
    length = int.from_bytes(tail[:4], "little")
    if length > MAXIMUM_FOOTER or length > size - 12:
        refuse(
            name,
            f"its footer claims {length:,} bytes of the file's {size:,} (at most {MAXIMUM_FOOTER:,} "
            "are allowed)",
        )
    try:
        return Reader(source.read(size - 8 - length, length)).struct()
    except Malformed as error:
        refuse(name, f"its footer is damaged: {error}")


def _leaves(name: str, schema: list[Any]) -> list[_Leaf]:
    """The columns in order, from the flattened tree of the schema."""
    leaves: list[_Leaf] = []
    place = 1

    def walk(path: tuple[str, ...], children: int, flat: bool, depth: int) -> None:
        nonlocal place
        if depth > 8:
            raise Malformed("nested too deeply")
        for _ in range(children):
            element = schema[place]
            place += 1
            here = (*path, element[4].decode("utf-8"))
            single = flat and element.get(3, 0) != 2
            if element.get(5):
                walk(here, element[5], single, depth + 1)
            else:
                text = element.get(6) == 0 or (isinstance(element.get(10), dict) and 1 in element[10])
                leaves.append(_Leaf(here, element[1], text, single))

    walk((), schema[0].get(5, 0), True, 0)
    if place != len(schema) or not leaves:
        raise Malformed("schema")
    return leaves


def _image_column(name: str, leaves: list[_Leaf]) -> _Leaf:
    held = [leaf for leaf in leaves if leaf.flat and leaf.type == _BYTES and not leaf.text]
    held = [leaf for leaf in held if len(leaf.path) == 1 or (len(leaf.path) == 2 and leaf.path[1] == "bytes")]
    named = [leaf for leaf in held if leaf.path[0] in _IMAGES]
    if len(named) == 1 or (not named and len(held) == 1):
        return (named or held)[0]
    columns = ", ".join(sorted({repr(leaf.path[0][:40]) for leaf in leaves})[:8])
    refuse(
        name,
        "must have one column 'image' with encoded images (bytes, or a structure of bytes and path); "
        f"its columns are {columns}",
    )


def _label_column(name: str, leaves: list[_Leaf]) -> _Leaf | None:
    flat = [leaf for leaf in leaves if leaf.flat and len(leaf.path) == 1]
    kinds = [leaf for leaf in flat if leaf.type in (_INT32, _INT64) or (leaf.type == _BYTES and leaf.text)]
    named = [leaf for leaf in kinds if leaf.path[0] in _LABELS]
    if len(named) > 1:
        refuse(name, "has both a column 'label' and a column 'labels'; keep one")
    wrong = [leaf for leaf in leaves if leaf.path[0] in _LABELS]
    if wrong and not named:
        refuse(name, f"its column {shown(wrong[0].path[0])} must hold whole numbers or strings, one each row")
    if named:
        return named[0]
    numbers = [leaf for leaf in kinds if leaf.type != _BYTES]
    if numbers:
        columns = ", ".join(repr(leaf.path[0][:40]) for leaf in numbers[:8])
        refuse(
            name,
            f"has whole numbers in {columns}, but no column 'label': rename the one that holds the "
            "classes, or drop them",
        )
    return None


def _check_groups(
    name: str, source: FileSource, rows: int, groups: list[Any], leaves: list[_Leaf], image: _Leaf
) -> None:
    """That the footer agrees with itself and with the size of the file."""
    if not 0 <= rows <= MAXIMUM_IMAGES:
        refuse(name, f"claims {rows:,} rows; 0 to {MAXIMUM_IMAGES:,} are allowed")
    total = expanded = 0
    for group in groups:
        columns, count = group[1], group[3]
        if count < 0 or len(columns) != len(leaves):
            raise Malformed("columns")
        total += count
        for leaf, column in zip(leaves, columns, strict=True):
            if 1 in column:
                refuse(name, "names another file that holds its columns; write one file")
            meta = column[3]
            _check_chunk(name, source, leaf, meta, count)
            expanded += meta[6]
            if leaf is image and max(meta[6], meta[7]) > MAXIMUM_GROUP:
                refuse(
                    name,
                    f"has a row group with {meta[6]:,} bytes of images; write groups of at most "
                    f"{MAXIMUM_GROUP:,} (row_group_size)",
                )
    if total != rows:
        refuse(name, f"its footer claims {rows:,} rows, its row groups {total:,}")
    if expanded > MAXIMUM_EXPANDED:
        refuse(name, f"unpacks to {expanded:,} bytes, more than the {MAXIMUM_EXPANDED:,} allowed")


def _check_chunk(name: str, source: FileSource, leaf: _Leaf, meta: dict[int, Any], count: int) -> None:
    path = tuple(part.decode("utf-8") for part in meta[3])
    start = min(meta[9], meta.get(11, meta[9]) or meta[9])
    if path != leaf.path or meta[1] != leaf.type or (leaf.flat and meta[5] != count):
        refuse(name, f"its footer contradicts itself about the column {shown('.'.join(leaf.path))}")
    if meta[4] not in _CODECS:
        refuse(name, f"is compressed in an unknown way; use {', '.join(_CODECS.values())}")
    if min(meta[6], meta[7]) < 0 or start < 4 or start + meta[7] > source.size - 12:
        refuse(name, f"its footer places the column {shown('.'.join(leaf.path))} outside the file")
    if meta[4] == 0 and meta[6] != meta[7]:
        refuse(name, f"its footer contradicts itself about the size of {shown('.'.join(leaf.path))}")


def _class_names(facts: list[Any], label: _Leaf) -> list[str] | None:
    """The names of the label numbers, as Hugging Face's datasets note them; None without or if they are no
    names."""
    for fact in facts:
        if fact[1] != b"huggingface" or not isinstance(fact.get(2), bytes):
            continue
        try:
            names = json.loads(fact[2])["info"]["features"][label.path[0]]["names"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        good = isinstance(names, list) and 0 < len(names) <= MAXIMUM_CLASSES
        if good and all(
            isinstance(item, str) and 0 < len(item) <= 256 and not broken_text(item) for item in names
        ):
            return list(names)
    return None
