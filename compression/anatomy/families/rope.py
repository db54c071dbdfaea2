"""Rotary position settings of config.json, in the old spelling (`rope_theta`, `rope_scaling`) and in the
new one (`rope_parameters`), rewritten into the new one. No torch."""

from __future__ import annotations

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


def rope_parameters(reader: ConfigReader, head_dim: int, context: int) -> dict[str, Any]:
    """The rewritten `rope_parameters`: theta, type and the numbers of that type. Raises ConfigInvalid."""
    key = "rope_scaling" if reader.config.get("rope_scaling") else "rope_parameters"
    given = reader.config.get(key) or {}
    if not isinstance(given, dict):
        reader.refuse(key, f"is {shown(given)}; it must be an object")
    if any(isinstance(value, dict) for value in given.values()):
        reader.refuse(key, "differs by layer type, which is not supported")
    partial = given.get("partial_rotary_factor", reader.config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        reader.refuse(
            "partial_rotary_factor", f"is {shown(partial)}; only whole heads can be rotated in this family"
        )
    inner = ConfigReader(given, f"{reader.where}: {key}")
    kind = given.get("rope_type", given.get("type")) or "default"
    if not isinstance(kind, str) or kind not in _NEEDED:
        reader.refuse(f"{key}.rope_type", f"is {shown(kind)}: {closest(str(kind), _NEEDED)}")
    theta = inner.number("rope_theta", 1.0, 1e12, 0.0) or reader.number("rope_theta", 1.0, 1e12, 10000.0)
    found: dict[str, Any] = {"rope_theta": theta, "rope_type": kind}
    if kind == "default":
        return found
    for name in sorted(_NUMBERS & given.keys()):
        if given[name] is not None:
            found[name] = inner.number(name, 0.0, 1e9, 0.0)
    for name in ("short_factor", "long_factor"):
        if name in given:
            found[name] = _factors(inner, name, head_dim // 2)
    if given.get("truncate") is not None:
        found["truncate"] = inner.flag("truncate", True)
    for name in _NEEDED[kind]:
        if name not in found:
            inner.refuse(name, f"is missing; rope_type {kind!r} needs it")
    if kind in ("llama3", "yarn", "longrope"):
        default = inner.whole(_PRETRAINED, 1, MAXIMUM_CONTEXT, context)
        found[_PRETRAINED] = reader.whole(_PRETRAINED, 1, MAXIMUM_CONTEXT, default)
    return found


def _factors(reader: ConfigReader, name: str, length: int) -> list[float]:
    value = reader.config[name]
    if not isinstance(value, list) or len(value) != length or not all(is_number(item) for item in value):
        reader.refuse(name, f"must list {length} numbers (half of head_dim)")
    return list(value)
