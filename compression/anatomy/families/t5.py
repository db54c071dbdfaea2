"""T5 encoders: relative positions, whose table the first layer holds, root mean square norms, a feed-forward
with or without a gate, no biases. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import (
    TABLE,
    Architecture,
    Config,
    Family,
    Linear,
    Parts,
    Shape,
    Sizes,
    norms,
)
from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader, shown

_SHARED, _COPY = "shared.weight", "encoder.embed_tokens.weight"
_POSITIONS = "layer.0.SelfAttention.relative_attention_bias.weight"
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
    """T5EncoderModel. Its layers are not alike, as the first one holds the table of positions for all, so
    none can be dropped."""

    name = "t5"
    architectures: Mapping[str, Architecture] = {
        "T5EncoderModel": Architecture("t5", "feature-extraction"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        reader = keys.renamed(reader, _OTHER_NAMES)
        keys.refuse_set(reader, {"is_decoder": "only encoders are supported in this family"})
        config = keys.read(reader, _KEYS)
        config["feed_forward_proj"] = _feed_forward(reader)
        buckets, distance = (config[f"relative_attention_{name}"] for name in ("num_buckets", "max_distance"))
        # Both directions have half of the buckets, of which half are for single steps.
        if buckets % 4 or distance <= buckets // 4:
            reader.refuse(
                "relative_attention_num_buckets",
                f"is {buckets}; it must be a multiple of 4, and a quarter of it below "
                f"relative_attention_max_distance ({distance})",
            )
        return {**config, **reader.special_tokens(config["vocab_size"])}

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        present = set(names)
        hidden, ffn, heads = config["d_model"], config["d_ff"], config["num_heads"]
        vocabulary, inner = config["vocab_size"], heads * config["d_kv"]
        table, copy = (_COPY, _SHARED) if _SHARED not in present and _COPY in present else (_SHARED, _COPY)
        positions = f"encoder.block.0.{_POSITIONS}"
        before: dict[str, Shape] = {
            table: (vocabulary, hidden),
            positions: (config["relative_attention_num_buckets"], heads),
        }
        return Parts(
            sizes=Sizes(
                config["num_layers"], hidden, heads, heads, config["d_kv"], ffn, vocabulary,
                config["n_positions"],
            ),
            layer_prefix="encoder.block.",
            linears=_linears(hidden, inner, ffn, config["feed_forward_proj"].startswith("gated-")),
            others=norms(hidden, "layer.0.layer_norm", "layer.1.layer_norm", bias=False),
            before=before,
            after=norms(hidden, "encoder.final_layer_norm", bias=False),
            kept={table: TABLE, positions: TABLE, copy: "tied to the embedding table"},
            optional={copy: (vocabulary, hidden)},
            tied=True,
            droppable=False,
        )  # fmt: skip


def _linears(hidden: int, inner: int, ffn: int, gated: bool) -> dict[str, Linear]:
    attention, dense = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    found = {
        f"{attention}.q": Linear("query", inner, hidden),
        f"{attention}.k": Linear("key", inner, hidden),
        f"{attention}.v": Linear("value", inner, hidden),
        f"{attention}.o": Linear("output", hidden, inner),
    }
    if gated:
        found |= {
            f"{dense}.wi_0": Linear("gate", ffn, hidden),
            f"{dense}.wi_1": Linear("up", ffn, hidden),
        }
    else:
        found[f"{dense}.wi"] = Linear("up", ffn, hidden)
    return {**found, f"{dense}.wo": Linear("down", hidden, ffn)}


def _feed_forward(reader: ConfigReader) -> str:
    """The form of the feed-forward: an activation, perhaps gated."""
    value = reader.config.get("feed_forward_proj", "relu")
    if not isinstance(value, str) or value.removeprefix("gated-") not in keys.ACTIVATIONS:
        reader.refuse(
            "feed_forward_proj",
            f"is {shown(value)}; it must be one of {', '.join(keys.ACTIVATIONS)}, alone or after gated-",
        )
    return value


FAMILY = T5Family()
