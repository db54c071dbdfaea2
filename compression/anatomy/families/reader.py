"""Reads the keys of a config.json one by one, each with its type and range. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from compression.errors import ConfigInvalid
from compression.suggestions import closest

MAXIMUM_LAYERS = 1024
MAXIMUM_WIDTH = 1 << 16
MAXIMUM_FFN = 1 << 20
MAXIMUM_VOCABULARY = 1 << 22
MAXIMUM_CONTEXT = 1 << 24

_MISSING: Any = object()


class ConfigReader:
    """Typed access to a config. Every method raises ConfigInvalid that names the key, its value and what is
    valid."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config = config
        self.where = where

    def refuse(self, key: str, what: str) -> NoReturn:
        """Raises ConfigInvalid about one key."""
        raise ConfigInvalid(f"{self.where}: {key} {what}.", pointer=f"/{key}")

    def given(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.config.get(key) is not None

    def whole(self, key: str, low: int, high: int, default: int = _MISSING) -> int:
        """A whole number from `low` to `high`."""
        value = self.config.get(key)
        if value is None:
            if default is _MISSING:
                self.refuse(key, f"is missing; it must be a whole number from {low} to {high:,}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"is {shown(value)}; it must be a whole number from {low} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: float) -> float:
        """A number from `low` to `high`, as a float: transformers refuses 1 where it wants 1.0."""
        value = self.config.get(key)
        if value is None:
            return default
        if not is_number(value) or not low <= value <= high:
            self.refuse(key, f"is {shown(value)}; it must be a number from {low} to {high}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"is {shown(value)}; it must be true or false")
        return value

    def word(self, key: str, valid: Sequence[str], default: str) -> str:
        """One of the valid words."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in valid:
            self.refuse(key, f"is {shown(value)}: {closest(str(value), valid)}")
        return value

    def special_tokens(self, vocabulary: int) -> dict[str, int | list[int] | None]:
        """The ids of the special tokens, those keys only that are there: an absent one has a default in its
        class,
        which differs from null."""
        found: dict[str, int | list[int] | None] = {}
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = self.config.get(key)
            if isinstance(value, list):
                if (
                    key != "eos_token_id"
                    or len(value) > 64
                    or not all(_token(item, vocabulary) for item in value)
                ):
                    self.refuse(key, f"is {shown(value)}; it must be a token id from 0 to {vocabulary - 1:,}")
                found[key] = list(value)
            elif value is not None:
                # Some decoders write -1 for "no padding token".
                found[key] = self.whole(key, -1 if key == "pad_token_id" else 0, vocabulary - 1)
            elif key in self.config:
                found[key] = None
        return found


def _token(value: Any, vocabulary: int) -> bool:
    return is_whole(value) and 0 <= value < vocabulary


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (true and false are not)."""
    return (is_whole(value) and abs(value) < 1 << 63) or (isinstance(value, float) and math.isfinite(value))


def shown(value: Any) -> str:
    """A value for a message, cut to 60 characters."""
    if is_whole(value) and abs(value) >= 1 << 63:
        return "a number beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
