"""What can be cut: weight sites, layers, and the arithmetic of plans. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import family, family_of
from compression.anatomy.families.base import Macs
from compression.anatomy.inspection import Inspection, Site, layer_of, with_layer
from compression.anatomy.patterns import ignored

__all__ = ["Inspection", "Macs", "Site", "count_macs", "ignored", "inspect", "layer_of", "with_layer"]


def inspect(config: Mapping[str, Any], tensors: Iterable[str], *, has_tokenizer: bool = True) -> Inspection:
    """What can be cut in a model. `config` is a rewritten one (`Admission.config`), `tensors` the names of
    the stored
    tensors (a mapping by name will do)."""
    return family_of(config["architectures"][0]).inspect(config, list(tensors), has_tokenizer)


def count_macs(inspection: Inspection, sequence_length: int) -> Macs:
    """Multiply-accumulates of one forward pass over one sequence of `sequence_length` tokens; see `Macs`."""
    return family(inspection.family).macs(inspection, sequence_length)
