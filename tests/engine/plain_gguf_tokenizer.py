"""What llama.cpp does with the tokenizer of a GGUF file, written plainly and from the file's keys alone.

The expressions are those of llama.cpp's `llm_tokenizer_bpe`, by the name of the pre-tokenizer.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import regex
from tokenizers import pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXPRESSIONS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [_CONTRACTIONS + r"\p{N}{1,3}" + _SPACES],
    "dbrx": [_CONTRACTIONS + r"\p{N}{1,3}" + _SPACES],
    "qwen2": [_CONTRACTIONS + r"\p{N}" + _SPACES],
}
WHOLE_WORDS = ("llama-bpe", "tekken")
BYTE = 6


def keys(path: Path) -> dict[str, Any]:
    """The keys of a file and their values."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def encode(found: dict[str, Any], text: str) -> list[int]:
    """Ids of a text without special tokens."""
    if found["tokenizer.ggml.model"] == "gpt2":
        return _byte_level(found, text)
    return _sentencepiece(found, text)


def _byte_level(found: dict[str, Any], text: str) -> list[int]:
    name = found["tokenizer.ggml.pre"]
    ids = {token: number for number, token in enumerate(found["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(found["tokenizer.ggml.merges"])}
    words = [text]
    for expression in EXPRESSIONS[name]:
        words = [part for word in words for part in _split(expression, word)]
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result: list[int] = []
    for word in words:
        letters = as_letters.pre_tokenize_str(word)[0][0]
        if name in WHOLE_WORDS and letters in ids:
            result.append(ids[letters])
            continue
        symbols = list(letters)
        while True:
            pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(symbols)]
            if not pairs or min(pairs) == len(ranks):
                break
            place = pairs.index(min(pairs))
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        result += [ids[symbol] for symbol in symbols]
    return result


def _split(expression: str, text: str) -> list[str]:
    """Matches, and what lies between them, in order."""
    parts, last = [], 0
    for match in regex.finditer(expression, text):
        parts += [text[last : match.start()], match.group()]
        last = match.end()
    return [part for part in [*parts, text[last:]] if part]


def _sentencepiece(found: dict[str, Any], text: str) -> list[int]:
    tokens = found["tokenizer.ggml.tokens"]
    ids = {token: number for number, token in enumerate(tokens)}
    kinds, scores = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.scores"]
    if found["tokenizer.ggml.add_space_prefix"]:
        text = " " + text
    symbols = list(text.replace(" ", "▁"))
    while True:
        joined = [ids.get(a + b) for a, b in pairwise(symbols)]
        ranked = [(-scores[one], place) for place, one in enumerate(joined) if one is not None]
        if not ranked:
            break
        place = min(ranked)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    result = []
    for symbol in symbols:
        if symbol in ids:
            result.append(ids[symbol])
            continue
        for byte in symbol.encode():
            number = ids[f"<0x{byte:02X}>"]
            assert kinds[number] == BYTE
            result.append(number)
    return result
