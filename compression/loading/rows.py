"""Texts as rows of token ids, and rows as batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from compression.evaluation.types import IGNORED, Batch
from compression.loading.dataset_files import Document
from compression.loading.text import TextEncoder


@dataclass
class Rows:
    """Token rows, their class numbers, how many documents they come from and the keys of those texts; for an
    encoder with a decoder the targets, one a row."""

    rows: list[Tensor]
    labels: list[int] | None
    documents: int
    keys: set[bytes]
    targets: list[Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens, those of targets too."""
        return sum(row.numel() for row in (*self.rows, *(self.targets or ())))

    def batch(self, places: Sequence[int], pad: int | None, start: int = 0) -> Batch:
        """The rows at these places as one batch (`collate`), with their targets (`target_batch`)."""
        labels = None if self.labels is None else [self.labels[place] for place in places]
        found = collate([self.rows[place] for place in places], labels, pad)
        if self.targets is not None:
            found |= target_batch([self.targets[place] for place in places], pad or 0, start)
        return found

    def whole(self, length: int) -> Rows:
        """Without a last row that is shorter than `length`, unless it is the only one."""
        if len(self.rows) > 1 and self.rows[-1].numel() < length:
            self.rows.pop()
            if self.targets is not None:
                self.targets.pop()
        return self

    def ordered(self, order: Sequence[int]) -> Rows:
        """The same rows in another order."""
        labels = None if self.labels is None else [self.labels[place] for place in order]
        targets = None if self.targets is None else [self.targets[place] for place in order]
        return Rows([self.rows[place] for place in order], labels, self.documents, self.keys, targets)

    def digest(self) -> str:
        """sha256 of the token ids and class numbers."""
        digest = hashlib.sha256()
        for row in (*self.rows, *(self.targets or ())):
            digest.update(row.numel().to_bytes(8, "little"))
            digest.update(row.numpy().tobytes())
        if self.labels is not None:
            digest.update(torch.tensor(self.labels, dtype=torch.int64).numpy().tobytes())
        return digest.hexdigest()


def text_key(text: str) -> bytes:
    """Identity of a text whatever its white space: the first 16 bytes of its sha256."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()[:16]


def collate(rows: Sequence[Tensor], labels: Sequence[int] | None, pad: int | None) -> Batch:
    """Rows of token ids as one batch, padded on the right with `pad` and masked when `pad` is not None."""
    width = max(row.numel() for row in rows)
    ids = torch.full((len(rows), width), pad or 0, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : row.numel()] = row
        mask[number, : row.numel()] = 1
    batch = {"input_ids": ids}
    if pad is not None:
        batch["attention_mask"] = mask
    if labels is not None:
        batch["labels"] = torch.tensor(list(labels), dtype=torch.int64)
    return batch


def target_batch(targets: Sequence[Tensor], pad: int, start: int) -> Batch:
    """Targets as a decoder learns them: `decoder_input_ids` int64 [b, t], which begin with the token `start`
    and are one token behind; `decoder_attention_mask` [b, t]; `labels` [b, t], IGNORED where a target has
    ended.
    """
    wanted = collate(targets, None, pad)
    tokens, mask = wanted["input_ids"], wanted["attention_mask"]
    return {
        "decoder_input_ids": torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], 1),
        "decoder_attention_mask": mask,
        "labels": tokens.masked_fill(mask == 0, IGNORED),
    }


def joined_rows(documents: Iterable[Document], encoder: TextEncoder, length: int, limit: int | None) -> Rows:
    """Rows of `length` tokens from documents joined by end-of-text; at most `limit` rows.

    The last, shorter row is kept (from two tokens on) when the documents end before the limit.
    """
    rows: list[Tensor] = []
    buffer: list[int] = []
    keys: set[bytes] = set()
    count = 0
    for document, ids in encoder.stream(documents, special=False):
        count += 1
        keys.add(text_key(document.text))
        if buffer or rows:
            buffer.append(encoder.end)
        buffer.extend(ids)
        while len(buffer) >= length:
            rows.append(torch.tensor(buffer[:length], dtype=torch.int64))
            del buffer[:length]
            if limit is not None and len(rows) == limit:
                return Rows(rows, None, count, keys)
    if len(buffer) >= 2:
        rows.append(torch.tensor(buffer, dtype=torch.int64))
    return Rows(rows, None, count, keys)


def document_rows(
    documents: Iterable[Document],
    encoder: TextEncoder,
    length: int,
    limit: int | None,
    label: Callable[[Any], int] | None,
) -> Rows:
    """One row a document, cut to `length` tokens; with `label` also its class number."""
    rows: list[Tensor] = []
    labels: list[int] = []
    keys: set[bytes] = set()
    for document, ids in encoder.stream(documents, special=True, length=length):
        if not ids:
            continue
        rows.append(torch.tensor(ids, dtype=torch.int64))
        keys.add(text_key(document.text))
        if label is not None:
            labels.append(label(document.label))
        if limit is not None and len(rows) == limit:
            break
    return Rows(rows, labels if label is not None else None, len(rows), keys)


def prefix_rows(documents: Iterable[Document], encoder: TextEncoder, length: int, limit: int | None) -> Rows:
    """Rows of `length` tokens of text, each with the `length` tokens that follow as its target.

    This is prefix language modelling (Raffel et al. 2020, arXiv 1910.10683, section 3.2.3; the LM adaptation
    of Lester et al. 2021, arXiv 2104.08691) with the boundary always in the middle: documents are joined and
    cut as by `joined_rows` into rows of twice the length. Nothing is added at the boundary or at the end, as
    the text goes on there.
    """
    found = joined_rows(documents, encoder, 2 * length, limit)
    middles = [(row.numel() + 1) // 2 for row in found.rows]
    found.targets = [row[middle:] for row, middle in zip(found.rows, middles, strict=True)]
    found.rows = [row[:middle] for row, middle in zip(found.rows, middles, strict=True)]
    return found


def predicted_bytes(
    documents: Iterable[Document], encoder: TextEncoder, found: Rows, length: int, *, joined: bool
) -> int:
    """Bytes (UTF-8) of text that the predicted tokens of rows stand for: all tokens of targets, else all of
    a row but
    its first. `found` came from the same documents, in this order, by `joined_rows` or `prefix_rows`
    (`joined`), or by `pair_rows`. Tokens that stand for no text, as at the end of a document, have none.
    """
    if not joined:
        goals = (Document(one.target or "") for one in documents)
        sizes = encoder.token_bytes(goals, special=True, length=length)
        return sum(sum(part) for part, _ in zip(sizes, found.rows, strict=False))
    flat = _flat(encoder.token_bytes(documents, special=False))
    total = 0
    for number, row in enumerate(found.rows):
        first = 1 if found.targets is None else row.numel()
        whole = row.numel() + (0 if found.targets is None else found.targets[number].numel())
        total += sum(list(islice(flat, whole))[first:])
    return total


def _flat(sizes: Iterable[list[int]]) -> Iterator[int]:
    """The sizes of joined documents, with that of the token between two, which stands for no text."""
    begun = False
    for part in sizes:
        if begun:
            yield 0
        yield from part
        begun = begun or bool(part)


def pair_rows(documents: Iterable[Document], encoder: TextEncoder, length: int, limit: int | None) -> Rows:
    """One row for each document that has a target, both with the tokenizer's own special tokens and cut to
    `length` tokens each."""
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    keys: set[bytes] = set()
    both = (part for one in documents for part in (one, Document(one.target or "")))
    encoded = encoder.stream(both, special=True, length=length)
    for (document, ids), (_, target) in zip(encoded, encoded, strict=True):
        if not ids or not target:
            continue
        rows.append(torch.tensor(ids, dtype=torch.int64))
        targets.append(torch.tensor(target, dtype=torch.int64))
        keys.add(text_key(document.text))
        if limit is not None and len(rows) == limit:
            break
    return Rows(rows, None, len(rows), keys, targets)
