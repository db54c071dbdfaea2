"""Vision transformers that classify images: ViT and DeiT. No torch.

The sequence is made of the patches of an image of one fixed size, after one token for the class (and one for
the teacher of DeiT). The projection of the patches stays dense: it is small, and every patch depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Linear, Parts, Sizes, norms
from compression.anatomy.families.encoder import Encoder, classes, dense, labels
from compression.anatomy.families.reader import ConfigReader, is_whole, shown
from compression.anatomy.structures import Widths

_VIT, _DEIT = "ViTForImageClassification", "DeiTForImageClassification"
PATCHES = "the projection of the patches: small, and every patch depends on it"
MAXIMUM_SIDE = 1 << 14
_KEYS: keys.Keys = {
    "hidden_size": keys.WIDTH,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "intermediate_size": keys.FFN,
    "hidden_act": keys.word("gelu"),
    "hidden_dropout_prob": keys.SHARE,
    "attention_probs_dropout_prob": keys.SHARE,
    "initializer_range": keys.SPREAD,
    "layer_norm_eps": keys.number(1e-12),
    "num_channels": keys.whole(1, 64, 3),
    "qkv_bias": keys.flag(True),
}


class VitFamily(Family):
    """ViTForImageClassification and DeiTForImageClassification."""

    name = "vit"
    neurons_key = "intermediate_size"
    cuts_heads = True
    architectures: Mapping[str, Architecture] = {
        _VIT: Architecture("vit", "image-classification"),
        _DEIT: Architecture("deit", "image-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        config = keys.read(reader, _KEYS)
        # The classes read it, though their configs do not name it: it is there where heads have gone.
        if reader.given("head_dim"):
            config["head_dim"] = reader.whole("head_dim", 1, 4096)
        else:
            keys.head_size(reader)
        config["image_size"] = sides(reader, "image_size", 224)
        config["patch_size"] = sides(reader, "patch_size", 16)
        if 0 in _grid(config):
            reader.refuse("patch_size", f"is {config['patch_size']}, more than image_size")
        # Two classes of ImageNet are called "crane".
        return {**config, **labels(reader, unique=False)}

    def resized(self, config: Config, widths: Widths) -> dict[str, Any]:
        result = super().resized(config, {kind: kept for kind, kept in widths.items() if kind != "head"})
        if "head" in widths:
            result |= {"num_attention_heads": widths["head"], "head_dim": _head_dim(config)}
        return result

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        hidden, ffn, heads = (
            config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
        )
        kind, named, (rows, columns) = config["model_type"], classes(config) or (), _grid(config)
        tokens = ["cls_token", "distillation_token"][: 2 if kind == "deit" else 1]
        length = rows * columns + len(tokens)
        (height, width), channels = pair(config["patch_size"]), config["num_channels"]
        projection = (hidden, channels, height, width)
        places = "embeddings.patch_embeddings.projection"
        found = Encoder(
            sizes=Sizes(config["num_hidden_layers"], hidden, heads, heads, _head_dim(config), ffn, 0, length),
            base=f"{kind}.",
            layers="encoder.layer.",
            linears=_linears(hidden, ffn, heads * _head_dim(config), config["qkv_bias"]),
            others=norms(hidden, "layernorm_before", "layernorm_after"),
            tables={},
            first={
                f"{places}.weight": projection,
                f"{places}.bias": (hidden,),
                **{f"embeddings.{name}": (1, 1, hidden) for name in tokens},
                "embeddings.position_embeddings": (1, length, hidden),
                **norms(hidden, "layernorm"),
            },
            head=dense("classifier", len(named), hidden),
            labels=named,
            # A classifier may have kept the pooler of its base model, which its class does not have.
            buffers=("pooler.dense.weight", "pooler.dense.bias"),
        ).parts(names)
        prefix = found.layer_prefix.removesuffix("encoder.layer.")
        patches = rows * columns * hidden * channels * height * width
        return replace(
            found,
            kept={f"{prefix}{places}.weight": PATCHES, **found.kept},
            sequence_macs=found.sequence_macs + patches,
            image=(channels, *pair(config["image_size"])),
        )  # fmt: skip


def _head_dim(config: Config) -> int:
    """The width of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _linears(hidden: int, ffn: int, inner: int, bias: bool) -> dict[str, Linear]:
    return {
        "attention.attention.query": Linear("query", inner, hidden, bias),
        "attention.attention.key": Linear("key", inner, hidden, bias),
        "attention.attention.value": Linear("value", inner, hidden, bias),
        "attention.output.dense": Linear("output", hidden, inner, True),
        "intermediate.dense": Linear("up", ffn, hidden, True),
        "output.dense": Linear("down", hidden, ffn, True),
    }


def pair(sides: int | list[int]) -> tuple[int, int]:
    """Height and width."""
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def _grid(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many patches fit into an image, down and across."""
    (height, width), (down, across) = pair(config["image_size"]), pair(config["patch_size"])
    return height // down, width // across


def sides(reader: ConfigReader, key: str, default: int) -> int | list[int]:
    """One side of a square, or height and width."""
    value = reader.config.get(key)
    if not isinstance(value, list):
        return reader.whole(key, 1, MAXIMUM_SIDE, default)
    if len(value) != 2 or not all(is_whole(side) and 1 <= side <= MAXIMUM_SIDE for side in value):
        reader.refuse(key, f"is {shown(value)}; it must be one whole number, or height and width")
    return list(value)


FAMILY = VitFamily()
