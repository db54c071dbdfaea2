"""Swin transformers that classify images: stages of layers that attend within windows. No torch.

Between two stages the patches are merged by four, and their width doubles. The projections that do it stay
dense: they are few and small, and all that follows depends on them, as on the projection of the patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    Architecture,
    Config,
    Family,
    Layers,
    Linear,
    Parts,
    Shape,
    Sizes,
    norms,
    under,
)
from compression.anatomy.families.encoder import CLASSIFIER, classes, dense, labels
from compression.anatomy.families.reader import MAXIMUM_LAYERS, MAXIMUM_WIDTH, ConfigReader, is_whole, shown
from compression.anatomy.families.vit import PATCHES, pair, sides
from compression.anatomy.inspection import elements
from compression.anatomy.structures import Kind, Widths

_MERGING = "merges patches between two stages: small, and all that follows depends on it"
_TABLE = "a table of relative positions: its rows are looked up, not multiplied"
_BIASES = "attention.self.relative_position_bias_table"
_INDEX = "attention.self.relative_position_index"
_KEYS: keys.Keys = {
    "embed_dim": keys.WIDTH,
    "hidden_act": keys.word("gelu"),
    "mlp_ratio": keys.number(4.0, 0.0, 64.0),
    "window_size": keys.whole(1, 1024, 7),
    "hidden_dropout_prob": keys.SHARE,
    "attention_probs_dropout_prob": keys.SHARE,
    "drop_path_rate": keys.number(0.1),
    "initializer_range": keys.SPREAD,
    "layer_norm_eps": keys.number(1e-5),
    "num_channels": keys.whole(1, 64, 3),
    "qkv_bias": keys.flag(True),
    "use_absolute_embeddings": keys.flag(False),
}


@dataclass(frozen=True)
class _Stage:
    """A stage: its place, layers, heads and width, the patches of an image and the tokens of all windows."""

    number: int
    depth: int
    heads: int
    width: int
    grid: tuple[int, int]
    windowed: int

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


class SwinFamily(Family):
    """SwinForImageClassification."""

    name = "swin"
    neurons_key = "mlp_ratio"
    keeps_equal = "Every layer keeps the same part of its neurons, since mlp_ratio is one number"
    neurons_of = "layer of the first stage"
    keeps_hidden = (
        "its layer norms subtract the mean over all channels, and every stage has a width of its own"
    )
    architectures: Mapping[str, Architecture] = {
        "SwinForImageClassification": Architecture("swin", "image-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = keys.read(reader, _KEYS)
        config["image_size"] = sides(reader, "image_size", 224)
        config["patch_size"] = sides(reader, "patch_size", 4)
        config["depths"] = _counts(reader, "depths", [2, 2, 6, 2], MAXIMUM_LAYERS)
        config["num_heads"] = _counts(reader, "num_heads", [3, 6, 12, 24], keys.MAXIMUM_HEADS)
        if len(config["num_heads"]) != len(config["depths"]):
            reader.refuse("num_heads", f"must list one number for each of the {len(config['depths'])} stages")
        # What other classes derive from the rest.
        last = config["embed_dim"] << len(config["depths"]) - 1
        for key, high, derived in (
            ("hidden_size", MAXIMUM_WIDTH, last), ("num_layers", MAXIMUM_LAYERS, len(config["depths"])),
        ):  # fmt: skip
            if reader.whole(key, 1, high, derived) != derived:
                reader.refuse(key, f"is {shown(reader.config[key])}; the stages make it {derived}")
        _check_stages(reader, config, last)
        # Two classes of ImageNet are called "crane".
        return {**config, **labels(reader, unique=False)}

    def why_not(self, kind: Kind, config: Config) -> str:
        uneven = any(_ffn(config, stage) != _ffn(config, 0) << stage for stage in _numbers(config))
        if kind == "neuron" and uneven:
            return (
                "mlp_ratio, one number for all stages, makes them not 1, 2, 4, ... times as wide as the first"
            )
        return super().why_not(kind, config)

    def resized(self, config: Config, widths: Widths) -> dict[str, Any]:
        """Of the first stage so many neurons stay, of each later one twice as many as of the one before."""
        ratio = widths["neuron"] / config["embed_dim"]
        if ratio * config["embed_dim"] < widths["neuron"]:
            ratio = math.nextafter(ratio, math.inf)
        return {**config, "mlp_ratio": ratio}

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        base = under("swin.", names)
        stages, named = _stages(config), classes(config) or ()
        lists = [_layers(config, stage, f"{base}encoder.layers.{stage.number}.", stages) for stage in stages]
        first, width = stages[0], stages[-1].width
        places = f"{base}embeddings.patch_embeddings.projection"
        before, merging = _outside(config, stages, base, places)
        tables = [f"{layers.prefix}{layer}.{_BIASES}" for layers in lists for layer in range(layers.count)]
        patches = first.tokens * elements(before[f"{places}.weight"])
        merged = sum(8 * one.width**2 * other.tokens for one, other in pairwise(stages))
        return Parts(
            sizes=Sizes(
                first.depth, first.width, first.heads, first.heads, first.width // first.heads,
                _ffn(config, 0), 0, first.tokens,
            ),
            layer_prefix=lists[0].prefix,
            linears=lists[0].linears,
            others=lists[0].others,
            layer_buffers=lists[0].buffers,
            layers_key=lists[0].key,
            further=tuple(lists[1:]),
            before=before,
            after={**norms(width, f"{base}layernorm"), **dense("classifier", len(named), width)},
            kept={
                f"{places}.weight": PATCHES,
                **dict.fromkeys(merging, _MERGING),
                **dict.fromkeys(tables, _TABLE), "classifier.weight": CLASSIFIER,
            },
            labels=named,
            sequence_macs=patches + merged + width * len(named),
            window_macs=2 * config["window_size"] ** 2 * sum(
                stage.depth * stage.width * stage.windowed for stage in stages
            ),
            image=(config["num_channels"], *pair(config["image_size"])),
            droppable=False,
        )  # fmt: skip


def _numbers(config: Config) -> range:
    return range(len(config["depths"]))


def _ffn(config: Config, stage: int) -> int:
    """How wide the feed-forward of a stage is."""
    return int(config["mlp_ratio"] * (config["embed_dim"] << stage))


def _outside(
    config: Config, stages: list[_Stage], base: str, places: str
) -> tuple[dict[str, Shape], list[str]]:
    """The tensors before and between the stages, and the names of the projections that merge patches."""
    first = stages[0]
    found: dict[str, Shape] = {
        f"{places}.weight": (first.width, config["num_channels"], *pair(config["patch_size"])),
        f"{places}.bias": (first.width,),
        **norms(first.width, f"{base}embeddings.norm"),
    }
    if config["use_absolute_embeddings"]:
        found[f"{base}embeddings.position_embeddings"] = (1, first.tokens, first.width)
    merging = []
    for stage in stages[:-1]:
        name, inputs = f"{base}encoder.layers.{stage.number}.downsample", 4 * stage.width
        found |= {f"{name}.reduction.weight": (inputs // 2, inputs), **norms(inputs, f"{name}.norm")}
        merging.append(f"{name}.reduction.weight")
    return found, merging


def _layers(config: Config, stage: _Stage, prefix: str, stages: list[_Stage]) -> Layers:
    """The layers of a stage; a layer's attention sees windows that are filled up, the rest the patches."""
    width, ffn = stage.width, _ffn(config, stage.number)
    bias, window = config["qkv_bias"], config["window_size"]
    attended, seen = (count / stages[0].tokens for count in (stage.windowed, stage.tokens))
    linears = {
        f"attention.self.{name}": Linear(name, width, width, bias, share=attended)
        for name in ("query", "key", "value")
    }
    linears |= {
        "attention.output.dense": Linear("output", width, width, True, share=attended),
        "intermediate.dense": Linear("up", ffn, width, True, share=seen),
        "output.dense": Linear("down", width, ffn, True, share=seen),
    }
    return Layers(
        prefix=f"{prefix}blocks.",
        count=stage.depth,
        linears=linears,
        others={
            _BIASES: ((2 * window - 1) ** 2, stage.heads),
            **norms(width, "layernorm_before", "layernorm_after"),
        },
        buffers=(_INDEX,),
        key=f"depths[{stage.number}]",
    )


def _stages(config: Config) -> list[_Stage]:
    (height, width), (down, across) = pair(config["image_size"]), pair(config["patch_size"])
    # Images are filled up to whole patches, and odd rows and columns of patches to even ones.
    grid, window = (-(-height // down), -(-width // across)), config["window_size"]
    found = []
    for number, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        rows, columns = (-(-side // window) * window for side in grid)
        found.append(_Stage(number, depth, heads, config["embed_dim"] << number, grid, rows * columns))
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    return found


def _check_stages(reader: ConfigReader, config: Config, last: int) -> None:
    """Refuses sizes with which the stock class cannot run."""
    if last > MAXIMUM_WIDTH:
        reader.refuse("embed_dim", f"is {config['embed_dim']}, which the stages make {last:,} wide")
    stages, window = _stages(config), config["window_size"]
    if int(config["mlp_ratio"] * config["embed_dim"]) < 1:
        reader.refuse("mlp_ratio", f"is {config['mlp_ratio']}, which leaves no neuron")
    for stage in stages:
        if stage.width % stage.heads:
            reader.refuse(
                "num_heads",
                f"has {stage.heads} for stage {stage.number}, whose width {stage.width} is no multiple",
            )
        if min(stage.grid) < window:
            reader.refuse(
                "window_size",
                f"is {window}, more than the {min(stage.grid)} patches across in stage {stage.number}, which "
                "transformers cannot run",
            )
    (height, width), (down, across) = pair(config["image_size"]), pair(config["patch_size"])
    if config["use_absolute_embeddings"] and (height % down or width % across):
        reader.refuse(
            "image_size",
            f"is {config['image_size']}; with absolute positions it must be a multiple of patch_size "
            f"({config['patch_size']})",
        )


def _counts(reader: ConfigReader, key: str, default: list[int], high: int) -> list[int]:
    """One whole number for each stage."""
    value = reader.config.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or not 1 <= len(value) <= 8 or not all(map(is_whole, value)):
        reader.refuse(key, f"is {shown(value)}; it must list 1 to 8 whole numbers, one for each stage")
    if not all(1 <= count <= high for count in value):
        reader.refuse(key, f"is {shown(value)}; each must be a whole number from 1 to {high:,}")
    return list(value)


FAMILY = SwinFamily()
