"""What can be cut: weight sites, layers, and the arithmetic of plans. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from compression.anatomy.families import family_of
from compression.anatomy.formats import formats, limits
from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site, elements, layer_of, with_layer
from compression.anatomy.macs import Macs, count_macs
from compression.anatomy.patterns import ignored

__all__ = ["Inspection", "Macs", "Site", "count_macs", "ignored", "inspect", "layer_of", "with_layer"]


def inspect(config: Mapping[str, Any], tensors: Iterable[str], *, has_tokenizer: bool = True) -> Inspection:
    """What can be cut in a model.

    `config` is a rewritten one (`Admission.config`). `tensors` are the names of the stored tensors; given
    as a mapping to `TensorHeader`, the bytes are exact, else they follow from the config's dtype.
    """
    anatomy = family_of(config["architectures"][0])
    found = anatomy.inspect(config, list(tensors), has_tokenizer)
    required = anatomy.expected(config, list(tensors)).required
    first = f"{found.layer_prefix}0."
    dtype = str(config.get("dtype") or "float32")

    def stored(name: str) -> int:
        header = tensors.get(name) if isinstance(tensors, Mapping) else None
        size = getattr(header, "bytes", None)
        return size if isinstance(size, int) else elements(required[name]) * ITEM_SIZES[dtype]

    return replace(
        found,
        parameters=sum(map(elements, required.values())),
        bytes=sum(map(stored, required)),
        layer_bytes=sum(stored(name) for name in required if name.startswith(first)),
        dtype=dtype,
        formats=formats(config),
        format_limits=limits(config),
    )
