"""T5 and its encoder alone, mT5: relative positions, whose tables the first layers hold, root mean square
norms, a feed-forward with or without a gate, no biases. No torch.

A decoder's layers attend to their own sequence and to the encoder's output. In transformers 5 the key
`tie_word_embeddings` of T5 says only whether the decoder's output is scaled (T5 1.1 and mT5 do not); the head
is tied if no other one is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    HEAD,
    TABLE,
    Architecture,
    Config,
    Family,
    Layers,
    Linear,
    Parts,
    Shape,
    Sizes,
    norms,
)
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, MAXIMUM_LAYERS, ConfigReader, shown
from compression.anatomy.inspection import TIED
from compression.anatomy.structures import CROSS, Group, Kind, Slice, Widths

_ENCODER, _T5, _MT5 = "T5EncoderModel", "T5ForConditionalGeneration", "MT5ForConditionalGeneration"
_SHARED, _COPIES = "shared.weight", ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"
_POSITIONS = "layer.0.SelfAttention.relative_attention_bias.weight"
# What the first checkpoints hold and no class has.
_OLD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_CONTEXT = 512
_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "d_model": keys.WIDTH,
    "d_kv": keys.whole(1, 4096),
    "d_ff": keys.FFN,
    "num_layers": keys.LAYERS,
    "num_heads": keys.HEADS,
    "relative_attention_num_buckets": keys.whole(4, 1 << 16, 32),
    "relative_attention_max_distance": keys.whole(2, MAXIMUM_CONTEXT, 128),
    "dropout_rate": keys.number(0.1),
    "layer_norm_epsilon": keys.number(1e-6),
    "initializer_factor": keys.number(1.0, 0.0, 1e3),
    "n_positions": keys.context(_CONTEXT),
}
_OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}


class T5Family(Family):
    """T5EncoderModel, T5ForConditionalGeneration and MT5ForConditionalGeneration. Layers are not alike, as
    the first of a list holds the table of positions for all, so none can be dropped."""

    name = "t5"
    neurons_key = "d_ff"
    cuts_heads = True
    keeps_equal = "All layers of the stacks share their widths, and those of a stack its table of positions"
    keeps_hidden = "its encoder and its decoder are two residual streams of one width, which is not built"
    architectures: Mapping[str, Architecture] = {
        _ENCODER: Architecture("t5", "feature-extraction"),
        _T5: Architecture("t5", "text2text-generation"),
        _MT5: Architecture("mt5", "text2text-generation"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _OTHER_NAMES)
        keys.refuse_set(reader, {"is_decoder": "only encoders are supported in this family, alone or with "
                                 "their decoder"})  # fmt: skip
        config = keys.read(reader, _KEYS)
        config["feed_forward_proj"] = _feed_forward(reader, "gated-gelu" if architecture == _MT5 else "relu")
        buckets, distance = (config[f"relative_attention_{name}"] for name in ("num_buckets", "max_distance"))
        # Half of the buckets that a direction has are for single steps; an encoder has two directions.
        part, word = (4, "a quarter") if architecture == _ENCODER else (2, "half")
        if buckets % 4 or distance <= buckets // part:
            reader.refuse(
                "relative_attention_num_buckets",
                f"is {buckets}; it must be a multiple of 4, and {word} of it below "
                f"relative_attention_max_distance ({distance})",
            )
        config |= reader.special_tokens(config["vocab_size"])
        return config if architecture == _ENCODER else {**config, **_decoder(architecture, reader, config)}

    def groups(self, config: Config, names: Iterable[str], kinds: Iterable[Kind]) -> list[Group]:
        """As `Family.groups`. The first layer of a stack has the table of positions, a column for each head,
        that all its layers add to their scores: in their first attention they keep the same heads."""
        return [_bound(group) for group in super().groups(config, names, kinds)]

    def resized(self, config: Config, widths: Widths) -> dict[str, Any]:
        result = super().resized(config, {kind: kept for kind, kept in widths.items() if kind != "head"})
        return {**result, "num_heads": widths["head"]} if "head" in widths else result

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        present, generates = set(names), config["architectures"][0] != _ENCODER
        hidden, heads, vocabulary = config["d_model"], config["num_heads"], config["vocab_size"]
        decoders = config["num_decoder_layers"] if generates else 0
        scaled = config.get("scale_decoder_outputs", False)
        own = generates and _HEAD in present and not scaled
        stacks = ("encoder", "decoder")[: 2 if generates else 1]
        copies = [*_COPIES[: len(stacks)], *([_HEAD] if generates and not own else [])]
        if _SHARED not in present and _COPIES[0] in present:
            copies[0], table = _SHARED, _COPIES[0]
        else:
            table = _SHARED
        words = (vocabulary, hidden)
        positions: dict[str, Shape] = {
            f"{stack}.block.0.{_POSITIONS}": (config["relative_attention_num_buckets"], heads)
            for stack in stacks
        }
        head: dict[str, Shape] = {_HEAD: words} if own else {}
        return Parts(
            sizes=Sizes(
                config["num_layers"], hidden, heads, heads, config["d_kv"], config["d_ff"], vocabulary,
                config["n_positions"],
            ),
            layer_prefix="encoder.block.",
            linears=_linears(config, crosses=False),
            others=norms(hidden, "layer.0.layer_norm", "layer.1.layer_norm", bias=False),
            before={table: words, **positions},
            after={**norms(hidden, *(f"{stack}.final_layer_norm" for stack in stacks), bias=False), **head},
            kept={
                table: TABLE, **dict.fromkeys(positions, TABLE), **dict.fromkeys(head, HEAD),
                **dict.fromkeys(copies, TIED),
            },
            optional=dict.fromkeys(copies, words),
            buffers=(_OLD,) if generates else (),
            tied=not own,
            droppable=False,
            further=(_decoder_layers(config),) if generates else (),
            cross_layers=decoders,
            token_macs=vocabulary * hidden if generates else 0,
            vocabulary=(table, *head, *copies),
            row_macs=hidden if generates else 0,
        )  # fmt: skip


def _bound(group: Group) -> Group:
    if group.kind != "head" or group.part:
        return group
    stack, _, rest = group.output.partition(".block.")
    if not rest.startswith("0."):
        return replace(group, bound=stack)
    query = group.slices[0].site
    table = Slice(f"{stack}.block.0.{_POSITIONS}", 1, 0, 1, query)
    return replace(group, slices=(*group.slices, table), bound=stack)


def _decoder(architecture: str, reader: ConfigReader, config: Config) -> dict[str, Any]:
    """The keys about a decoder and its head."""
    if not reader.flag("is_encoder_decoder", True):
        reader.refuse("is_encoder_decoder", f"is false, but {architecture} has a decoder")
    tied = reader.flag("tie_word_embeddings", True)
    start = max(0, reader.config.get("pad_token_id") or 0)
    found = {
        "num_decoder_layers": reader.whole("num_decoder_layers", 1, MAXIMUM_LAYERS, config["num_layers"]),
        "decoder_start_token_id": reader.whole("decoder_start_token_id", 0, config["vocab_size"] - 1, start),
        "tie_word_embeddings": tied,
        "use_cache": reader.flag("use_cache", True),
    }
    if architecture == _T5:
        found["scale_decoder_outputs"] = reader.flag("scale_decoder_outputs", tied)
    return found


def _decoder_layers(config: Config) -> Layers:
    return Layers(
        prefix="decoder.block.",
        count=config["num_decoder_layers"],
        linears=_linears(config, crosses=True),
        others=norms(config["d_model"], *(f"layer.{place}.layer_norm" for place in range(3)), bias=False),
        key="num_decoder_layers",
    )


def _attention(name: str, hidden: int, inner: int, kind: str = "") -> dict[str, Linear]:
    return {
        f"{name}.q": Linear(f"{kind}query", inner, hidden),
        f"{name}.k": Linear(f"{kind}key", inner, hidden),
        f"{name}.v": Linear(f"{kind}value", inner, hidden),
        f"{name}.o": Linear(f"{kind}output", hidden, inner),
    }


def _linears(config: Config, crosses: bool) -> dict[str, Linear]:
    """The weights of a layer; with `crosses`, of one that attends to the encoder's output too."""
    hidden, ffn, inner = config["d_model"], config["d_ff"], config["num_heads"] * config["d_kv"]
    found = _attention("layer.0.SelfAttention", hidden, inner)
    if crosses:
        found |= _attention("layer.1.EncDecAttention", hidden, inner, CROSS)
    dense = f"layer.{2 if crosses else 1}.DenseReluDense"
    if config["feed_forward_proj"].startswith("gated-"):
        found |= {
            f"{dense}.wi_0": Linear("gate", ffn, hidden),
            f"{dense}.wi_1": Linear("up", ffn, hidden),
        }
    else:
        found[f"{dense}.wi"] = Linear("up", ffn, hidden)
    return {**found, f"{dense}.wo": Linear("down", hidden, ffn)}


def _feed_forward(reader: ConfigReader, default: str) -> str:
    """The form of the feed-forward: an activation, perhaps gated."""
    value = reader.config.get("feed_forward_proj", default)
    if not isinstance(value, str) or value.removeprefix("gated-") not in keys.ACTIVATIONS:
        reader.refuse(
            "feed_forward_proj",
            f"is {shown(value)}; it must be one of {', '.join(keys.ACTIVATIONS)}, alone or after gated-",
        )
    return value


FAMILY = T5Family()
