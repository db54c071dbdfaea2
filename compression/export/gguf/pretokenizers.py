"""How a byte-level tokenizer splits text before its merges, by llama.cpp's names. No torch.

llama.cpp knows pre-tokenizers by name alone: each name stands for regular expressions compiled into it, and
for whether a word that is a token stays whole whatever the merges say (`ignore_merges`). A tokenizer.json
spells them out; what is spelled like one of them is recognised, anything else is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = "digits"

_NAMES: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
    ((_DIGITS, _GPT2), False): "smollm",
}

NAMES = tuple(_NAMES.values())
"""The pre-tokenizers that are recognised."""


def recognise(pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool) -> str | None:
    """llama.cpp's name of the `pre_tokenizer` of a byte-level tokenizer.json; None if it has none."""
    steps = _steps(pre_tokenizer)
    if steps is None or not steps or steps[-1].get("type") != "ByteLevel":
        return None
    *before, last = steps
    if last.get("add_prefix_space", True):
        return None
    splits = [_split(step) for step in before]
    if None in splits:
        return None
    found = tuple(split for split in splits if split is not None)
    if last.get("use_regex", True):
        found = (*found, _GPT2)
    return _NAMES.get((found, ignore_merges))


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]] | None:
    if pre_tokenizer is None:
        return None
    if pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer.get("pretokenizers") or [])
    return [pre_tokenizer]


def _split(step: Mapping[str, Any]) -> str | None:
    """The regular expression by which a step splits, or `digits`; None for any other step."""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return _DIGITS
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    pattern = (step.get("pattern") or {}).get("Regex")
    return pattern if isinstance(pattern, str) else None
