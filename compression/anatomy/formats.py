"""The formats that a model can be written in. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy import gguf

SAFETENSORS, GGUF = "safetensors", "gguf"
FORMATS = (SAFETENSORS, GGUF)
"""Every format there is, in the order in which an artifact names them; the first is always written."""


def formats(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The formats of a model, by its rewritten config.json."""
    return (SAFETENSORS,) if gguf.faults(config) else FORMATS


def limits(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Why a model cannot be written in a format: `format`, `reason`, and the `granularities` of the cut of
    which it is so (empty: of any)."""
    faults = gguf.faults(config)
    if faults:
        return ({"format": GGUF, "reason": "; ".join(faults), "granularities": []},)
    found: dict[str, list[str]] = {}
    for granularity, reason in gguf.limits(config).items():
        found.setdefault(reason, []).append(granularity)
    return tuple(
        {"format": GGUF, "reason": reason, "granularities": names} for reason, names in found.items()
    )
