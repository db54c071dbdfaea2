"""A model whose layers have widths of their own: its config, its tensors, the code that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.families import family_of
from compression.anatomy.families.base import usual_sizes
from compression.anatomy.structures import Kind, head_units
from compression.anatomy.varied import PACKAGED, PARTS, PREFIX, Counts
from compression.evaluation.types import TensorSource
from compression.surgery import CutSource, cuts_of

_TYPE = "per_layer_"
CODE = Path(__file__).with_name("modeling_secateur.py")


def per_layer_settings(settings: Mapping[str, Any], counts: Counts) -> dict[str, Any]:
    """The config of a model whose layers keep so many units of those that `settings` say. KeyError for an
    architecture that has no packaged code."""
    sizes = usual_sizes(settings)
    units = head_units(sizes)
    layers: dict[str, dict[str, Any]] = {}
    for kind, numbers in counts.items():
        for layer, kept in enumerate(numbers):
            own = layers.setdefault(str(layer), {})
            if not kept:
                own["skip"] = sorted([*own.get("skip", []), PARTS[kind][0]])
            elif kind == "neuron":
                own["intermediate_size"] = kept
            else:
                own["num_attention_heads"] = kept * (sizes.heads // units)
                own["num_key_value_heads"] = kept if sizes.key_value_heads > 1 else 1
    return {**_packaged(settings), "head_dim": sizes.head_dim, "per_layer_config": layers}


def low_rank_settings(settings: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config of a model some of whose weights (by stored name) are products of these ranks: `low_rank`
    says it by module. KeyError for an architecture that has no packaged code."""
    # Base models are saved without the name of their place in the whole.
    modules = {
        f"model.{name.removeprefix('model.').removesuffix('.weight')}": rank for name, rank in ranks.items()
    }
    return {**_packaged(settings), "low_rank": modules}


def skip_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model with weights on its skip connections; `settings` say its width. KeyError for an
    architecture that has no packaged code."""
    return {**_packaged(settings), "skip_weights": True}


def stock_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the stock class that a packaged one with weights on its skip connections is built of."""
    kept = {name: value for name, value in settings.items() if name not in ("auto_map", "skip_weights")}
    (architecture,) = settings["architectures"]
    return {
        **kept,
        "model_type": str(settings["model_type"]).removeprefix(_TYPE),
        "architectures": [architecture.removeprefix(PREFIX)],
    }


def _packaged(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config that names the packaged classes."""
    architecture = settings["architectures"][0]
    return {
        **settings,
        "model_type": f"{_TYPE}{settings['model_type']}",
        "architectures": [PREFIX + architecture],
        "auto_map": {
            "AutoConfig": f"{CODE.stem}.{PREFIX}{PACKAGED[architecture]}",
            "AutoModelForCausalLM": f"{CODE.stem}.{PREFIX}{architecture}",
        },
    }


class PerLayerSource:
    """The tensors of a model without what its layers do not keep (a `TensorSource`): of `counts[kind][i]`
    units the first ones of layer i, and nothing of a part that keeps none. `settings` are those of `source`.
    """

    def __init__(self, source: TensorSource, settings: Mapping[str, Any], counts: Counts) -> None:
        kinds: list[Kind] = [kind for kind in ("neuron", "head") if kind in counts]
        family = family_of(settings["architectures"][0])
        groups = family.groups(settings, list(source.names()), kinds)
        kept = {group.name: torch.arange(counts[group.kind][group.layer]) for group in groups}
        self._source = CutSource(source, cuts_of(groups, kept))
        gone = [
            f"{group.output.split('.' + PARTS[group.kind][1] + '.')[0]}.{PARTS[group.kind][1]}."
            for group in groups
            if not counts[group.kind][group.layer]
        ]
        self._names = [name for name in source.names() if not name.startswith(tuple(gone))]

    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Storage dtype of a tensor."""
        return self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._source.tensor(name)
