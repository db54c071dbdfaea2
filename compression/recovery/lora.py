"""Low-rank recovery, merged under the mask (Hu et al. 2022, arXiv 2106.09685).

The forward pass computes with (W + B A * alpha / rank) * mask, the very weight that is written at the end, so
that merging loses nothing and the zeros stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from compression.anatomy.patterns import check_pattern, ignored
from compression.errors import RecoveryImpossible
from compression.evaluation import stock
from compression.loading.transformers_import import Conv1D
from compression.recovery.masked import MaskedLowRank
from compression.recovery.names import file_names, tensor_names
from compression.recovery.registry import TrainingOptions, recoveries
from compression.recovery.run import check_loss, train, width
from compression.recovery.training import derived_seed
from compression.recovery.types import RecoveryContext, RecoveryResult


class LoraOptions(TrainingOptions):
    """Options of low-rank recovery."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the trained change of each weight.")
    alpha: float = Field(32.0, gt=0, description="The change is scaled by alpha / rank.")
    targets: list[str] = Field(
        ["*"],
        min_length=1,
        description="Which prunable weights are trained: globs, or regular expressions after re:.",
    )

    @field_validator("targets")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            check_pattern(pattern)
        return value


class _Adapters:
    """The factors of every target, by site; they are the float32 masters themselves."""

    def __init__(self, layers: Mapping[str, MaskedLowRank]) -> None:
        self.layers = layers
        self.masters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for site, layer in layers.items():
            self.masters[f"{site}/a"] = layer.a
            self.masters[f"{site}/b"] = layer.b

    def train(self, on: bool) -> None:
        """Nothing of the model changes by being looked at: dropout stays off."""

    def gather(self) -> None:
        """Gradients are on the masters already."""

    def publish(self) -> None:
        """The model computes with the masters already."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for site, layer in self.layers.items():
            yield site, layer.merged()


def attach(model: nn.Module, context: RecoveryContext, options: LoraOptions) -> dict[str, MaskedLowRank]:
    """Freeze ``model`` and put a trained layer in the place of each target; site name -> layer.

    Raises RecoveryImpossible when the patterns match no prunable weight.
    """
    model.requires_grad_(False)
    known = file_names(model, tensor_names(context.pruned))
    sites = set(context.sites) or set(context.masks)
    layers: dict[str, MaskedLowRank] = {}
    for parameter, files in known.items():
        site = next((name for name in files if name in sites), None)
        if site is None or not ignored(options.targets, [site]):
            continue
        path, _, _ = parameter.rpartition(".")
        parent_path, _, child = path.rpartition(".")
        linear = model.get_submodule(path)
        if not isinstance(linear, nn.Linear | Conv1D):
            continue
        seed = derived_seed(context.seed, "lora", site)
        rank = min(options.rank, *linear.weight.shape)
        layer = MaskedLowRank(linear, context.masks.get(site), rank, options.alpha / options.rank, seed)
        setattr(model.get_submodule(parent_path), child, layer)
        layers[site] = layer
    if not layers:
        raise RecoveryImpossible(f"no prunable weight matches the targets {options.targets}")
    return layers


@recoveries.register
class Lora:
    """Trains a low-rank change of every pruned weight and merges it under the mask."""

    name = "lora"
    title = "LoRA, merged under the mask"
    summary = (
        "Trains a low-rank change of each prunable weight and merges it under the mask: "
        "few trained parameters, and every zero stays exactly zero."
    )
    options: type[BaseModel] = LoraOptions

    def recover(self, context: RecoveryContext) -> RecoveryResult:
        """Raises RecoveryImpossible, pydantic.ValidationError (options)."""
        options = LoraOptions.model_validate(dict(context.options))
        check_loss(options, context)
        model = stock.load(context.pruned, context.task, device=context.device)
        trained = _Adapters(attach(model, context, options))
        return train(context, options, model, trained, default_rate(width(model)))


def default_rate(hidden: int) -> float:
    """Peak learning rate for a model of this hidden width: 1e-3 at 256, 2.5e-4 at 4096."""
    return 0.016 / math.sqrt(hidden)
