"""Masks on disk: one bit a weight, little-endian within a byte, rows padded to whole bytes.

A mask beside a model has the shape of the stored weight, so that it can be applied to it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from compression.export.writer import Entry, write_file

FORMAT = "secateur.masks/1"


def pack(mask: Tensor) -> Tensor:
    """bool [rows, columns] -> uint8 [rows, ceil(columns / 8)]; bit k of byte j: column 8 j + k (1 = kept)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1, bitorder="little"))


def unpack(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 8)] -> bool [rows, columns]."""
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(packed.shape[0], -1)[:, :columns].bool()


def write_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write keep-masks by weight name; metadata ``columns:NAME`` says how many columns each has."""
    names = sorted(masks)
    shapes = {name: tuple(masks[name].shape) for name in names}
    entries = [Entry(name, torch.uint8, (shape[0], -(-shape[1] // 8))) for name, shape in shapes.items()]
    metadata = {"masks": FORMAT} | {f"columns:{name}": str(shapes[name][1]) for name in names}
    write_file(path, entries, lambda name: pack(masks[name]), metadata)


def read_masks(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(weight name, keep-mask bool in the shape of the stored weight) one after another, by name."""
    with safe_open(path, framework="pt") as file:
        columns = {
            key.removeprefix("columns:"): int(value)
            for key, value in file.metadata().items()
            if key.startswith("columns:")
        }
        for name in sorted(columns):
            yield name, unpack(file.get_tensor(name), columns[name])
