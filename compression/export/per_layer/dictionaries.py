"""Weights that are dictionaries with sparse codes, as they are written: entries, and a bit for each place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compression.anatomy.factors import factor_names, packed_names
from compression.anatomy.ranks import Ranks
from compression.evaluation.types import TensorSource


def dictionary_settings(settings: Mapping[str, Any], atoms: int) -> dict[str, Any]:
    """The config of a model whose low-rank weights have sparse codes; `settings` say the ranks."""
    return {**settings, "atoms_per_entry": atoms}


def packed(codes: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """(values [out, entries], mask uint8 [out, ceil(k / 8)]) of codes [out, k] with at most so many non-zeros
    a row; where there are fewer, the first places that are zero count as entries too."""
    order = (codes != 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    places = order[:, :entries].sort(1).values
    rows, columns = codes.shape
    bits = torch.zeros(rows, -(-columns // 8) * 8, dtype=torch.int64)
    bits.scatter_(1, places, 1)
    weights = 2 ** torch.arange(8)
    mask = (bits.reshape(rows, -1, 8) * weights).sum(2).to(torch.uint8)
    return codes.gather(1, places), mask


class DictionarySource:
    """The tensors of a source whose `up` factors have one entry for `atoms` columns, packed (a
    `TensorSource`)."""

    def __init__(self, source: TensorSource, ranks: Ranks, atoms: int) -> None:
        self._source = source
        self._codes: dict[str, tuple[str, int, bool]] = {}
        gone = set()
        for weight, rank in ranks.items():
            up = factor_names(weight)[1]
            gone.add(up)
            values, mask = packed_names(weight)
            self._codes[values] = (up, rank // atoms, True)
            self._codes[mask] = (up, rank // atoms, False)
        self._names = sorted([*(name for name in source.names() if name not in gone), *self._codes])

    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        if name not in self._codes:
            return self._source.shape(name)
        up, entries, is_values = self._codes[name]
        rows, columns = self._source.shape(up)
        return (rows, entries) if is_values else (rows, -(-columns // 8))

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor."""
        if name not in self._codes:
            return self._source.dtype(name)
        up, _, is_values = self._codes[name]
        return self._source.dtype(up) if is_values else torch.uint8

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        if name not in self._codes:
            return self._source.tensor(name)
        up, entries, is_values = self._codes[name]
        return packed(self._source.tensor(up), entries)[0 if is_values else 1]


class CodeMasks(Mapping[str, Tensor]):
    """By the name of a sparse `up` factor: where it is not zero, bool [out, rank], read from the files of
    finished blocks when it is asked for."""

    def __init__(self, files: Sequence[Path], ranks: Ranks) -> None:
        self._where: dict[str, Path] = {}
        wanted = {factor_names(weight)[1] for weight in ranks}
        for path in files:
            with safe_open(path, framework="pt", device="cpu") as stream:
                self._where |= {name: path for name in stream.keys() if name in wanted}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._where[name], framework="pt", device="cpu") as stream:
            found: Tensor = stream.get_tensor(name) != 0
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
