"""Text to token ids by the model's own tokenizer.json, without importing the rest of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from compression.errors import DatasetInvalid
from compression.loading.dataset_files import Document

GROUP = 256


class TextEncoder:
    """The tokenizer of a model's folder. `end` joins documents of decoders, `pad` fills rows of encoders."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], specials: tuple[int, int] | None = None
    ) -> None:
        """`specials` are `end` and `pad`, where they are known; else the configuration or the tokenizer says
        them."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise DatasetInvalid("the model has no tokenizer.json, so texts cannot be turned into tokens")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vocabulary = int(config.get("vocab_size") or self._tokenizer.get_vocab_size())
        names = _special_names(folder)
        self.end = self._special(config.get("eos_token_id"), names.get("eos_token"))
        self.pad = self._special(config.get("pad_token_id"), names.get("pad_token"))
        if specials is not None:
            self.end, self.pad = specials

    def _special(self, number: Any, name: str | None) -> int:
        """Id from the configuration, else by the tokenizer's name for it, else 0."""
        if isinstance(number, list):
            number = number[0] if number else None
        if isinstance(number, int):
            return number
        found = self._tokenizer.token_to_id(name) if name else None
        return found if found is not None else 0

    def stream(
        self, documents: Iterable[Document], *, special: bool, length: int | None = None
    ) -> Iterator[tuple[Document, list[int]]]:
        """Documents with their ids, in order; `special` adds the tokenizer's own tokens, `length` cuts.

        Raises DatasetInvalid when an id lies outside the model's vocabulary.
        """
        for document, encoding in self._encodings(documents, special, length):
            ids = encoding.ids
            if ids and max(ids) >= self._vocabulary:
                raise DatasetInvalid(
                    f"the tokenizer gives token {max(ids)}, but the model's vocabulary has {self._vocabulary}"
                )
            yield document, ids

    def token_bytes(
        self, documents: Iterable[Document], *, special: bool, length: int | None = None
    ) -> Iterator[list[int]]:
        """Of every document the bytes (UTF-8) of its text that each token stands for, as `stream` would give
        them. What
        lies between two tokens counts to the second, a character of several tokens to the first."""
        for document, encoding in self._encodings(documents, special, length):
            sizes, done = [], 0
            for _, end in encoding.offsets:
                sizes.append(len(document.text[done:end].encode("utf-8", "surrogatepass")))
                done = max(done, end)
            yield sizes

    def _encodings(
        self, documents: Iterable[Document], special: bool, length: int | None
    ) -> Iterator[tuple[Document, Encoding]]:
        if length is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(max_length=length)
        for group in _groups(documents):
            texts = [document.text for document in group]
            encoded = self._tokenizer.encode_batch(texts, add_special_tokens=special)
            yield from zip(group, encoded, strict=True)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    # Groups grow from one document, so that a caller who stops early has not paid for many.
    group: list[Document] = []
    size = 4
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group
            group, size = [], min(GROUP, size * 2)
    if group:
        yield group


def _special_names(folder: Path) -> dict[str, str]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    names = {}
    for role in ("eos_token", "pad_token"):
        value = settings.get(role)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            names[role] = value
    return names
