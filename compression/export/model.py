"""A model folder that stock ``transformers`` loads: weights, config, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compression.anatomy.inspection import layer_of, with_layer
from compression.evaluation.types import TensorSource
from compression.export.writer import SHARD_BYTES, Entry, model_bytes, write_model_weights
from compression.loading.streamed import trimmed_config

_NOT_COPIED = {"config.json", "model.safetensors.index.json", "README.md"}


def kept_names(names: Sequence[str], kept: Sequence[int] | None) -> dict[str, str]:
    """Name in the output -> name in the source; with ``kept``, other layers go and numbers close up."""
    if kept is None:
        return {name: name for name in names}
    place = {source: number for number, source in enumerate(kept)}
    renamed: dict[str, str] = {}
    for name in names:
        layer = layer_of(name)
        if layer is None:
            renamed[name] = name
        elif layer in place:
            renamed[with_layer(name, place[layer])] = name
    return renamed


def rewritten_config(
    settings: Mapping[str, Any], kept: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The configuration of the written model: number of layers, lists per layer cut, dtype."""
    config = dict(settings)
    if kept is not None:
        config = trimmed_config(config, kept)
        limit = config.get("max_window_layers")
        if isinstance(limit, int):
            config["max_window_layers"] = sum(layer < limit for layer in kept)
    config.pop("torch_dtype", None)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    return config


def write_model(
    folder: Path,
    source: TensorSource,
    settings: Mapping[str, Any],
    copy_from: Path,
    *,
    kept: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    after_file: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write ``source`` as a model folder; returns the paths of all its files, sorted.

    ``settings`` is the admitted configuration of the source; ``copy_from`` holds tokenizer and generation
    files, which are copied as they are; ``kept`` lists the source layers that stay; ``dtype`` is that of the
    written floating-point tensors (None: as stored). Tensors that nothing changed keep their bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    renamed = kept_names(source.names(), kept)
    entries = model_entries(source, renamed, dtype)
    write_model_weights(
        folder,
        entries,
        lambda name: source.tensor(renamed[name]),
        limit=shard_bytes,
        after_file=after_file,
    )
    config = json.dumps(rewritten_config(settings, kept, dtype), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    for path in companions(copy_from):
        target_path = folder / path.relative_to(copy_from)
        target_path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target_path)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def model_entries(source: TensorSource, renamed: Mapping[str, str], dtype: torch.dtype | None) -> list[Entry]:
    """The tensors of the written model in order; ``renamed`` is from ``kept_names``."""
    entries = []
    for name in sorted(renamed, key=natural):
        stored = source.dtype(renamed[name])
        target = dtype if dtype is not None and stored.is_floating_point else stored
        entries.append(Entry(name, target, source.shape(renamed[name])))
    return entries


class WrittenModel:
    """A model as ``write_model`` would write it, without writing it: its tensors, and its weight files'
    bytes.
    """

    def __init__(
        self, source: TensorSource, kept: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._source = source
        self._renamed = kept_names(source.names(), kept)
        self._entries = {entry.name: entry for entry in model_entries(source, self._renamed, dtype)}

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entries[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._source.tensor(self._renamed[name]).to(self._entries[name].dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the weight files."""
        return model_bytes(list(self._entries.values()))


def companions(folder: Path) -> list[Path]:
    """Files of a model folder that go with the weights: tokenizer, generation settings, pooling settings."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".safetensors"
        and path.name not in _NOT_COPIED
        and "secateur" not in path.relative_to(folder).parts
    ]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key in which ``layers.2`` comes before ``layers.10``."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))
