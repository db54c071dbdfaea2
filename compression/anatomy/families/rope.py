"""Rotary position settings of config.json, in the old spelling (`rope_theta`, `rope_scaling`) and in the
new one (`rope_parameters`), rewritten into the new one. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy.families.reader import MAXIMUM_CONTEXT, ConfigReader, is_number, shown
from compression.suggestions import closest

_NUMBERS = {
    "factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "mscale",
    "mscale_all_dim",
}  # fmt: skip
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_PRETRAINED = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def rope_parameters(
    reader: ConfigReader, head_dim: int, context: int, theta: float = 10000.0
) -> dict[str, Any]:
    """The rewritten `rope_parameters` of a model that rotates whole heads: theta (where nothing is said the
    given one), type and the numbers of that type. Raises ConfigInvalid."""
    key, given = _given(reader)
    partial = given.get(_PARTIAL, reader.config.get(_PARTIAL))
    if partial not in (None, 1):
        reader.refuse(_PARTIAL, f"is {shown(partial)}; only whole heads can be rotated in this family")
    return _flat(reader, key, given, head_dim, context, _theta(reader, default=theta))


def partial_rope_parameters(
    reader: ConfigReader,
    head_dim: int,
    context: int,
    default: float,
    old: tuple[str, str] = ("rope_theta", _PARTIAL),
) -> dict[str, Any]:
    """The same for models that rotate the first part of each head: `default` of it where nothing is said.
    `old` is how old configs spell theta and that part."""
    theta, partial = old
    key, given = _given(reader)
    inner = ConfigReader(given, f"{reader.where}: {key}")
    share = inner.number(_PARTIAL, 0.0, 1.0, reader.number(partial, 0.0, 1.0, default))
    rotated = int(head_dim * share)
    if rotated < 2 or rotated % 2:
        reader.refuse(
            partial, f"is {share}, which rotates {rotated} of {head_dim}; it must be an even number"
        )
    return {**_flat(reader, key, given, rotated, context, _theta(reader, theta)), _PARTIAL: share}


def rope_parameters_by_layer(
    reader: ConfigReader, head_dim: int, context: int, thetas: Mapping[str, tuple[str, float]]
) -> dict[str, Any]:
    """The same for models with one set for each kind of layer: `thetas` maps the kind to the old key of its
    theta and its default. The old `rope_scaling` is meant for full attention."""
    given, scaling = _object(reader, "rope_parameters"), _object(reader, "rope_scaling")
    if not all(
        kind in thetas and (value is None or isinstance(value, dict)) for kind, value in given.items()
    ):
        reader.refuse(
            "rope_parameters", f"is {shown(given)}; it must hold an object for each of {', '.join(thetas)}"
        )
    found = {}
    for kind, (old, default) in thetas.items():
        own = (given.get(kind) or {}) | (scaling if kind == "full_attention" else {})
        key = f"rope_parameters.{kind}"
        found[kind] = _flat(reader, key, own, head_dim, context, _theta(reader, old, default))
    return found


def _object(reader: ConfigReader, key: str) -> dict[str, Any]:
    given = reader.config.get(key) or {}
    if not isinstance(given, dict):
        reader.refuse(key, f"is {shown(given)}; it must be an object")
    return given


def _given(reader: ConfigReader) -> tuple[str, dict[str, Any]]:
    """The key that counts and its value, which must be one set for all layers."""
    key = "rope_scaling" if reader.config.get("rope_scaling") else "rope_parameters"
    given = _object(reader, key)
    if any(isinstance(value, dict) for value in given.values()):
        reader.refuse(key, "differs by layer type, which is not supported")
    return key, given


def _theta(reader: ConfigReader, key: str = "rope_theta", default: float = 10000.0) -> float:
    return reader.number(key, 1.0, 1e12, default)


def _flat(
    reader: ConfigReader, key: str, given: dict[str, Any], rotated: int, context: int, theta: float
) -> dict[str, Any]:
    """One set of parameters; `rotated` is how much of each head is rotated, `theta` that of old configs."""
    inner = ConfigReader(given, f"{reader.where}: {key}")
    kind = given.get("rope_type", given.get("type")) or "default"
    if not isinstance(kind, str) or kind not in _NEEDED:
        reader.refuse(f"{key}.rope_type", f"is {shown(kind)}: {closest(str(kind), _NEEDED)}")
    found: dict[str, Any] = {"rope_theta": _theta(inner, default=theta), "rope_type": kind}
    if kind == "default":
        return found
    for name in sorted(_NUMBERS & given.keys()):
        if given[name] is not None:
            found[name] = inner.number(name, 0.0, 1e9, 0.0)
    for name in ("short_factor", "long_factor"):
        if name in given:
            found[name] = _factors(inner, name, rotated // 2)
    if given.get("truncate") is not None:
        found["truncate"] = inner.flag("truncate", True)
    for name in _NEEDED[kind]:
        if name not in found:
            inner.refuse(name, f"is missing; rope_type {kind!r} needs it")
    if kind in ("llama3", "yarn", "longrope"):
        pretrained = inner.whole(_PRETRAINED, 1, MAXIMUM_CONTEXT, context)
        found[_PRETRAINED] = reader.whole(_PRETRAINED, 1, MAXIMUM_CONTEXT, pretrained)
    return found


def _factors(reader: ConfigReader, name: str, length: int) -> list[float]:
    value = reader.config[name]
    if not isinstance(value, list) or len(value) != length or not all(is_number(item) for item in value):
        reader.refuse(name, f"must list {length} numbers (half of what is rotated of each head)")
    return list(value)
