"""A tokenizer.json taken apart: its tokens by id, its merges, and what must stay whatever the texts are. No
torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compression.errors import TokenizerInvalid

BPE, UNIGRAM, WORDPIECE = "BPE", "Unigram", "WordPiece"
FILE = "tokenizer.json"
SPACE = "\u2581"
"""What sentencepiece writes for a space."""

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence")


def refuse(what: str) -> NoReturn:
    """Raises TokenizerInvalid about tokenizer.json."""
    raise TokenizerInvalid(f"{FILE}: {what}.", pointer=FILE)


@dataclass(frozen=True)
class TokenizerFile:
    """One tokenizer. `kind` is BPE, Unigram or WordPiece; `vocabulary` maps the tokens of its model to ids,
    `added`
    the added tokens (special or not) to theirs; those that the model has too have the same id in both.
    `merges` are those of BPE, by rank. `data` is the file as JSON data.
    """

    data: Mapping[str, Any]
    kind: str
    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]

    @property
    def model(self) -> Mapping[str, Any]:
        """The file's `model`."""
        model: Mapping[str, Any] = self.data["model"]
        return model

    @property
    def outside(self) -> dict[str, int]:
        """The added tokens that the model does not have, by id."""
        found = ((token, number) for token, number in self.added.items() if token not in self.vocabulary)
        return dict(sorted(found, key=lambda item: item[1]))

    def ids(self) -> dict[str, int]:
        """All tokens with their ids."""
        return {**self.vocabulary, **self.added}

    def alphabet(self) -> set[int]:
        """Ids of the tokens without which some text could not be encoded any more, or would be unknown where
        it was not: the bytes; where there are none, or the model is no BPE, every token of one character.
        """
        pieces = [self.vocabulary[piece] for piece in _BYTES if piece in self.vocabulary]
        whole = bool(self.model.get("byte_fallback")) and len(pieces) == len(_BYTES)
        if self.kind == BPE and whole:
            space = self.vocabulary.get(SPACE)
            return {*pieces, *([] if space is None else [space])}
        prefix = str(self.model.get("continuing_subword_prefix") or "") if self.kind == WORDPIECE else ""
        single = {
            number
            for token, number in self.vocabulary.items()
            if len(token) == 1 or (prefix and token.startswith(prefix) and len(token) == len(prefix) + 1)
        }
        return single | (set(pieces) if whole else set()) | self._lowest()

    def _lowest(self) -> set[int]:
        """Of Unigram, the piece with the lowest score (the first of equals): the score of what is unknown,
        to which paths are compared, is a constant below it."""
        if self.kind != UNIGRAM:
            return set()
        scores = [float(score) for _, score in self.model["vocab"]]
        return {min(range(len(scores)), key=scores.__getitem__)}

    def specials(self) -> set[int]:
        """Ids of the added tokens, of the unknown token and of those that the post-processor and padding
        name."""
        found = set(self.added.values())
        unknown = self.model.get("unk_id") if self.kind == UNIGRAM else self.model.get("unk_token")
        if isinstance(unknown, str):
            unknown = self.ids().get(unknown)
        if isinstance(unknown, int):
            found.add(unknown)
        found |= set(processor_ids(self.data.get("post_processor")))
        padding = self.data.get("padding") or {}
        return found | ({int(padding["pad_id"])} if padding else set())


def processor_ids(processor: Mapping[str, Any] | None) -> Iterator[int]:
    """The ids that a post-processor inserts."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        yield from processor_ids(part)
    for special in dict(processor.get("special_tokens") or {}).values():
        yield from special["ids"]
    for role in ("sep", "cls"):
        if role in processor:
            yield processor[role][1]


def read_tokenizer(path: Path) -> TokenizerFile:
    """Reads a tokenizer.json. Raises TokenizerInvalid if it is damaged, or of a kind whose tokens cannot be
    removed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = _parse(data)
    except (ValueError, TypeError, KeyError, AttributeError):
        refuse("its model, tokens or post-processor are not what the tokenizers library writes")
    _check(found)
    return found


def _parse(data: Any) -> TokenizerFile:
    model = data["model"]
    kind = model.get("type") or _guessed(model)
    if kind not in (BPE, UNIGRAM, WORDPIECE):
        refuse(
            f"its model is {str(kind)[:40]!r}; tokens can be removed from {BPE}, {UNIGRAM} and {WORDPIECE}"
        )
    if kind == UNIGRAM:
        vocabulary = {str(piece): number for number, (piece, _) in enumerate(model["vocab"])}
        if len(vocabulary) != len(model["vocab"]):
            refuse("a piece is listed twice")
    else:
        vocabulary = {str(token): int(number) for token, number in model["vocab"].items()}
    added = {str(token["content"]): int(token["id"]) for token in data.get("added_tokens") or []}
    merges = tuple(_pair(merge) for merge in model["merges"]) if kind == BPE else ()
    return TokenizerFile(data, kind, vocabulary, added, merges)


def _guessed(model: Mapping[str, Any]) -> str:
    """The kind of a model in old files, which do not say it."""
    if "merges" in model:
        return BPE
    return UNIGRAM if isinstance(model["vocab"], list) else WORDPIECE


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _check(found: TokenizerFile) -> None:
    if any(
        found.added[token] != number for token, number in found.vocabulary.items() if token in found.added
    ):
        refuse("an added token has another id than the same token of the model")
    ids = found.ids()
    if len(set(ids.values())) != len(ids) or any(number < 0 for number in ids.values()):
        refuse("two tokens have one id")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if found.kind == BPE and found.model.get(key):
            refuse(f"its BPE model has a {key}, with which tokens cannot be removed")
    _check_processor(found.data.get("post_processor"))


def _check_processor(processor: Mapping[str, Any] | None) -> None:
    if processor is None:
        return
    if processor.get("type") not in _PROCESSORS:
        refuse(
            f"its post-processor is {str(processor.get('type'))[:40]!r}; it must be one of "
            f"{', '.join(_PROCESSORS)}"
        )
    for part in processor.get("processors", ()):
        _check_processor(part)
