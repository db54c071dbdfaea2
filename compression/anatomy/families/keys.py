"""What the keys of config.json may be, as tables: key -> how it is read. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compression.anatomy.families.reader import (
    MAXIMUM_CONTEXT,
    MAXIMUM_FFN,
    MAXIMUM_LAYERS,
    MAXIMUM_VOCABULARY,
    MAXIMUM_WIDTH,
    ConfigReader,
    shown,
)

Key = Callable[[ConfigReader, str], Any]
Keys = Mapping[str, Key]

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
MAXIMUM_HEADS = 4096


def whole(low: int, high: int, default: int | None = None) -> Key:
    """A whole number; without a default it must be there."""
    if default is None:
        return lambda reader, key: reader.whole(key, low, high)
    return lambda reader, key: reader.whole(key, low, high, default)


def number(default: float, low: float = 0.0, high: float = 1.0) -> Key:
    """A number, by default a share."""
    return lambda reader, key: reader.number(key, low, high, default)


def flag(default: bool) -> Key:
    """true or false."""
    return lambda reader, key: reader.flag(key, default)


def word(default: str, valid: Sequence[str] = ACTIVATIONS) -> Key:
    """One of the valid words, by default an activation."""
    return lambda reader, key: reader.word(key, valid, default)


def nullable(read: Key, default: Any = None) -> Key:
    """null, or what `read` takes; an absent key means the default."""

    def key(reader: ConfigReader, name: str) -> Any:
        if reader.given(name):
            return read(reader, name)
        return None if name in reader.config else default

    return key


VOCABULARY = whole(2, MAXIMUM_VOCABULARY)
WIDTH = whole(1, MAXIMUM_WIDTH)
LAYERS = whole(1, MAXIMUM_LAYERS)
HEADS = whole(1, MAXIMUM_HEADS)
FFN = whole(1, MAXIMUM_FFN)
SHARE = number(0.0)
SPREAD = number(0.02)


def context(default: int) -> Key:
    """The longest sequence, in tokens."""
    return whole(2, MAXIMUM_CONTEXT, default)


def read(reader: ConfigReader, keys: Keys) -> dict[str, Any]:
    """The keys of a table, each checked."""
    return {name: key(reader, name) for name, key in keys.items()}


def refuse_set(reader: ConfigReader, reasons: Mapping[str, str]) -> None:
    """Refuses a config in which one of these flags is true, each for its reason."""
    for key, reason in reasons.items():
        if reader.flag(key, False):
            reader.refuse(key, f"is true; {reason}")


def renamed(reader: ConfigReader, names: Mapping[str, str]) -> ConfigReader:
    """A reader of the same config in which other spellings (`names`: other -> usual) have the usual names."""
    config = dict(reader.config)
    for other, usual in names.items():
        value = config.pop(other, None)
        if value is None:
            continue
        if config.get(usual, value) != value:
            reader.refuse(
                other, f"is {shown(value)}, but {usual}, which means the same, is {shown(config[usual])}"
            )
        config[usual] = value
    return ConfigReader(config, reader.where)


def head_size(reader: ConfigReader, hidden: str = "hidden_size", heads: str = "num_attention_heads") -> int:
    """hidden / heads. Refuses a width that is no multiple."""
    width, count = reader.whole(hidden, 1, MAXIMUM_WIDTH), reader.whole(heads, 1, MAXIMUM_HEADS)
    if width % count:
        reader.refuse(hidden, f"is {width}, no multiple of {heads} ({count})")
    return width // count


def rotary_size(reader: ConfigReader, default: int) -> int:
    """head_dim, which rotary positions need to be even."""
    size = reader.whole("head_dim", 2, 4096, default)
    if size % 2:
        reader.refuse("head_dim", f"is {size}; rotary positions need an even number")
    return size


def key_value_heads(
    reader: ConfigReader, key: str = "num_key_value_heads", default: int | None = None
) -> int:
    """The number of key-value heads, by default that of the query heads, which must be a multiple of it."""
    heads = reader.whole("num_attention_heads", 1, MAXIMUM_HEADS)
    groups = reader.whole(key, 1, MAXIMUM_HEADS, default or heads)
    if heads % groups:
        reader.refuse("num_attention_heads", f"is {heads}, no multiple of {key} ({groups})")
    return groups


def layer_types(reader: ConfigReader, layers: int, default: Sequence[str], window: int | None) -> list[str]:
    """The kinds of attention of the layers, one for each. Refuses windows where there is none."""
    valid = ("full_attention", "sliding_attention")
    types = reader.config.get("layer_types") or list(default)
    if not isinstance(types, list) or len(types) != layers or any(item not in valid for item in types):
        reader.refuse("layer_types", f"is {shown(types)}; it must list {layers} of {' and '.join(valid)}")
    if window is None and "sliding_attention" in types:
        reader.refuse("layer_types", "has sliding_attention, but there is no sliding_window in use")
    return list(types)
