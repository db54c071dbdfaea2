"""Configurations of models as they lie in a folder, and of models with fewer layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compression.anatomy.inspection import layers_key
from compression.device import DTYPES
from compression.loading.weights import WeightReader


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; a dtype that it leaves out is that of the first stored tensor."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not settings.get("dtype"):
        reader = WeightReader(folder)
        stored = str(reader.dtype(reader.names()[0])).removeprefix("torch.")
        settings["dtype"] = settings.pop("torch_dtype", None) or stored
    return settings


def trimmed_config(settings: Mapping[str, Any], kept: Sequence[int] | None) -> dict[str, Any]:
    """The configuration of a model that has only these source layers (None: all): their number, and lists
    per layer cut.
    """
    result = dict(settings)
    if kept is None:
        return result
    key = layers_key(settings)
    if list(kept) == list(range(int(settings[key]))):
        return result
    if result.get("layer_types"):
        result["layer_types"] = [result["layer_types"][index] for index in kept]
    result[key] = len(kept)
    return result


def storage_dtype(settings: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the configuration says its weights are stored in."""
    return DTYPES[str(settings.get("dtype", "float32"))]
