"""Reading weights one tensor at a time, from one safetensors file or many, with finished blocks laid over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.factors import weight_of
from compression.anatomy.residual import is_skip
from compression.anatomy.slices import Slice, slice_of, stored_tensor
from compression.device import DTYPES
from compression.errors import CompressionError
from compression.loading.tensor_file import TensorFile

BASE_PREFIXES = (
    "model.",
    "transformer.",
    "gpt_neox.",
    "bert.",
    "roberta.",
    "distilbert.",
    "vit.",
    "deit.",
    "swin.",
)
# The one tensor that may be laid over a folder without it: the head of a model whose head was tied.
HEAD = "lm_head.weight"
# Names that transformers 5 gave to what older checkpoints call otherwise.
OLD_NAMES = {"lm_head.weight": "embed_out.weight"}


class TensorMissing(CompressionError):
    """A tensor that the model's family needs is not in its files."""

    code = "tensor_missing"


class WeightReader:
    """The tensors of a folder's `*.safetensors` files by name (a `TensorSource` for evaluation and export).

    `overlay` is a folder (or a list of files) whose tensors stand in for those of the same name; names that
    the folder itself does not have (packed masks of checkpoints) are ignored, but for factors of weights that
    it has, weights on skip connections and a head that is not tied any more. Those `without` are as if they
    were not there. Nothing is read before it is asked for. Slices of stored tensors (`anatomy.slices`) are
    read and laid over by their own names; they are not among the `names`.
    """

    def __init__(
        self,
        folder: Path,
        overlay: Path | Sequence[Path] | None = None,
        without: Collection[str] = frozenset(),
    ) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        self._stored: set[str] = set()
        for path in sorted(folder.glob("*.safetensors")):
            self._stored.update(self._file(path).keys())
            self._where.update({name: path for name in self._file(path).keys() if name not in without})
        self._own = dict(self._where)
        self._over: dict[str, dict[Slice, Path]] = {}
        for path in _overlay_files(overlay):
            self.lay_over(path)

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = TensorFile(path)
        return self._open[path]

    def lay_over(self, path: Path) -> None:
        """Let the tensors of one more file stand in for those of the same name."""
        for name in self._file(path).keys():
            piece = slice_of(name)
            if name in self._own or name == HEAD:
                self._where[name] = path
                self._over.pop(name, None)
            elif piece is not None and piece.tensor in self._own:
                self._over.setdefault(piece.tensor, {})[piece] = path
            elif weight_of(name) in self._stored or is_skip(name):
                self._where[name] = path

    def names(self) -> list[str]:
        """Names of all tensors as they are stored, sorted."""
        return sorted(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def _slice(self, name: str) -> Any:
        if name not in self._where:
            raise TensorMissing(f"the model's files have no tensor {name!r}")
        return self._file(self._where[name]).get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor or of the one it is a slice of, from the header alone."""
        name = stored_tensor(name)
        code = self._slice(name).get_dtype()
        return DTYPES[code] if code in DTYPES else self.tensor(name).dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, read-only by convention (it may be a view of the file), or a slice of one;
        TensorMissing.
        """
        piece = slice_of(name)
        if piece is not None and name not in self._where:
            return self._piece(piece)
        if name not in self._where:
            raise TensorMissing(f"the model's files have no tensor {name!r}")
        tensor: Tensor = self._file(self._where[name]).get_tensor(name)
        if name in self._over:
            tensor = tensor.clone()
            for over, path in self._over[name].items():
                take(tensor, over).copy_(self._file(path).get_tensor(over.name))
        return tensor

    def elements(self, name: str, start: int, count: int) -> Tensor:
        """`count` elements [count] of a stored tensor, in row-major order, from element `start` on;
        TensorMissing."""
        if name not in self._where:
            raise TensorMissing(f"the model's files have no tensor {name!r}")
        found: Tensor = self._file(self._where[name]).get_range(name, start, count)
        return found

    def _piece(self, piece: Slice) -> Tensor:
        path = self._over.get(piece.tensor, {}).get(piece)
        if path is not None:
            laid: Tensor = self._file(path).get_tensor(piece.name)
            return laid
        experts, rows, columns = self.shape(piece.tensor)
        first, last = piece.rows(rows)
        if piece.expert >= experts:
            raise TensorMissing(f"the model's files have no tensor {piece.name!r}")
        file = self._file(self._where[piece.tensor])
        start = (piece.expert * rows + first) * columns
        found: Tensor = file.get_range(piece.tensor, start, (last - first) * columns)
        return found.reshape(last - first, columns)

    def stored_name(self, name: str) -> str | None:
        """The stored name of a module's tensor: as it is, or with or without the base model's prefix, or an
        old name."""
        if name in self._where:
            return name
        if OLD_NAMES.get(name) in self._where:
            return OLD_NAMES[name]
        for prefix in BASE_PREFIXES:
            if prefix + name in self._where:
                return prefix + name
            if name.startswith(prefix) and name.removeprefix(prefix) in self._where:
                return name.removeprefix(prefix)
        return None

    def rows(self, name: str, limit: int = 1 << 22) -> Iterator[tuple[int, Tensor]]:
        """A tensor in runs of whole rows of at most `limit` elements: (first row, rows)."""
        tensor = self.tensor(name)
        if tensor.dim() == 0:
            yield 0, tensor.reshape(1)
            return
        width = max(1, tensor[:1].numel())
        step = max(1, limit // width)
        for start in range(0, tensor.shape[0], step):
            yield start, tensor[start : start + step]


def take(tensor: Tensor, piece: Slice) -> Tensor:
    """The view of a tensor of all experts, [experts, rows, columns], that a slice means: [rows, columns]."""
    first, last = piece.rows(tensor.shape[1])
    return tensor[piece.expert, first:last]


def _overlay_files(overlay: Path | Sequence[Path] | None) -> list[Path]:
    if overlay is None:
        return []
    if isinstance(overlay, Path):
        return sorted(overlay.glob("*.safetensors")) if overlay.is_dir() else [overlay]
    return list(overlay)
