"""Datasets as token batches: calibration, evaluation and recovery, with nothing shared between them
unnoticed.

Language models see documents joined by the end-of-text token and cut into sequences of equal length.
Encoders see
one document a row, with their special tokens, padded to the longest row of the batch and with an attention
mask. Encoders with a decoder see pairs of input and target the same way; of other datasets the text that
follows an input is its target (`rows.prefix_rows`).
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from compression.errors import DatasetInsufficient, DatasetInvalid
from compression.evaluation.types import CLASSIFICATION, GENERATION, TEXT_TO_TEXT, Batch
from compression.loading.dataset_files import Document, iter_documents
from compression.loading.rows import (
    Rows,
    document_rows,
    joined_rows,
    pair_rows,
    predicted_bytes,
    prefix_rows,
    text_key,
)
from compression.loading.text import TextEncoder

__all__ = ["Corpus", "DataPlan", "Sequences", "TrainingRows", "overlap", "text_key"]

# A token of any tokenizer we know stands for fewer characters on average; so many are read per wanted token.
CHARACTERS_PER_TOKEN = 12
# A batch of logits stays below this many bytes where a single sequence allows it.
LOGITS_BYTES = 256 << 20
HELD_OUT = 5


@dataclass(frozen=True)
class Sequences:
    """Token rows of one use of a dataset, as batches. `labels` names the classes of a classifier;
    `text_bytes` counts the bytes of text that predicted tokens stand for (None: not counted)."""

    task: str
    batches: tuple[Batch, ...]
    labels: tuple[str, ...] | None
    documents: int
    sequences: int
    tokens: int
    digest: str
    texts: frozenset[bytes] = field(repr=False, default=frozenset())
    text_bytes: int | None = None

    def facts(self) -> dict[str, Any]:
        """What the report says of it: how much there was and the hash of its token ids."""
        return {
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "sha256": self.digest,
        }


@dataclass(frozen=True)
class TrainingRows:
    """Samples to learn from, addressed by number: `batch(indices)` depends on nothing but its indices."""

    rows: Rows
    pad: int | None
    start: int
    texts: frozenset[bytes] = field(repr=False, default=frozenset())

    def __len__(self) -> int:
        return len(self.rows.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """input_ids int64 [b, s]; for encoders attention_mask [b, s]; for classifiers labels [b]; for
        a decoder behind an encoder what `rows.target_batch` gives."""
        return self.rows.batch(indices, self.pad, self.start)

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "documents": self.rows.documents,
            "sequences": len(self),
            "tokens": self.rows.tokens,
            "sha256": self.rows.digest(),
        }


class Corpus:
    """The documents of one dataset file and their division into a held-out fifth and the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threshold: bytes | None = None

    def documents(self, part: str = "all") -> Iterator[Document]:
        """Documents in file order: "all", "held-out" (a fifth of the distinct texts, by hash) or "rest"."""
        if part == "all":
            yield from iter_documents(self.path)
            return
        threshold = self.threshold()
        for document in iter_documents(self.path):
            if (text_key(document.text) <= threshold) == (part == "held-out"):
                yield document

    def paired(self) -> bool:
        """Whether its documents are pairs of input and target: all are, or none."""
        return any(document.target is not None for document in islice(self.documents(), 1))

    def threshold(self) -> bytes:
        """Largest text key of the held-out fifth; DatasetInvalid when there is nothing to divide."""
        if self._threshold is None:
            keys = sorted({text_key(document.text) for document in iter_documents(self.path)})
            if len(keys) < 2:
                raise DatasetInsufficient(
                    "a dataset with a single document cannot be divided into a part to calibrate on "
                    "and a part to evaluate on; give evaluation.dataset another dataset"
                )
            self._threshold = keys[max(1, len(keys) // HELD_OUT) - 1]
        return self._threshold

    def sample(self, part: str, seed: int, *, characters: int = 0, documents: int = 0) -> list[Document]:
        """Documents chosen by a seeded hash of their text, in that order: as many as make up both so many
        `characters` and so many `documents`.

        One pass and bounded memory whatever the size of the file.
        """
        heap: list[tuple[int, int, Document]] = []
        held = 0
        prefix = str(seed).encode() + b":"
        for number, document in enumerate(self.documents(part)):
            rank = int.from_bytes(hashlib.sha256(prefix + text_key(document.text)).digest()[:8], "big")
            heapq.heappush(heap, (-rank, -number, document))
            held += len(document.text)
            while len(heap) > documents and held - len(heap[0][2].text) >= characters:
                held -= len(heapq.heappop(heap)[2].text)
        return [document for _, _, document in sorted(heap, key=lambda item: (-item[0], -item[1]))]


class DataPlan:
    """Reads the datasets of a job for one model and gives them as batches.

    `config` is the admitted configuration, `folder` holds the tokenizer, `task` as in the admission,
    `datasets` maps dataset ids to files. Of the datasets in `held_out`, evaluation gets a fifth of the
    documents, and whatever reads them for another purpose gets the others. `specials` are as for
    `TextEncoder`.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        task: str,
        datasets: Mapping[str, Path],
        *,
        held_out: Collection[str] = (),
        specials: tuple[int, int] | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.encoder = TextEncoder(folder, config, specials)
        self._corpora = {name: Corpus(path) for name, path in datasets.items()}
        self._held_out = frozenset(held_out)
        # Texts that are joined and cut have one length, all others are padded.
        self._pad = None if task == GENERATION else self.encoder.pad
        self._start = int(config.get("decoder_start_token_id") or 0)

    def _corpus(self, dataset: str) -> Corpus:
        if dataset not in self._corpora:
            raise DatasetInvalid(f"dataset {dataset!r} is not among the files of this job")
        return self._corpora[dataset]

    def calibration(self, dataset: str, samples: int, length: int, seed: int, batch_size: int) -> Sequences:
        """`samples` rows of `length` tokens (for encoders: documents up to that length), chosen by `seed`.

        A dataset that is too small gives fewer rows; the facts say how many. Raises DatasetInvalid for none.
        """
        rows = self._sampled(dataset, samples, length, seed)
        return self._sequences(rows, batch_size, dataset, "calibration")

    def _sampled(self, dataset: str, samples: int, length: int, seed: int) -> Rows:
        part = "rest" if dataset in self._held_out else "all"
        corpus = self._corpus(dataset)
        cut = {GENERATION: joined_rows, TEXT_TO_TEXT: prefix_rows}.get(self.task)
        if cut is not None and not corpus.paired():
            wanted = samples * length * CHARACTERS_PER_TOKEN * (2 if self.task == TEXT_TO_TEXT else 1)
            rows = cut(corpus.sample(part, seed, characters=wanted), self.encoder, length, samples)
            return rows.whole(length)
        documents = corpus.sample(part, seed, documents=samples)
        if self.task == TEXT_TO_TEXT:
            return pair_rows(documents, self.encoder, length, samples)
        labelled = self.task == CLASSIFICATION and all(document.label is not None for document in documents)
        return document_rows(documents, self.encoder, length, samples, self._label if labelled else None)

    def token_counts(
        self, dataset: str, after: Callable[[int], None] = lambda documents: None
    ) -> Counter[int]:
        """How often each token occurs in all text of a dataset (targets of pairs too), but what is held out
        of it. `after` hears of every document, with their number so far."""
        part = "rest" if dataset in self._held_out else "all"
        found: Counter[int] = Counter()
        texts = (
            Document(text)
            for one in self._corpus(dataset).documents(part)
            for text in (one.text, one.target)
            if text is not None
        )
        for number, (_, ids) in enumerate(self.encoder.stream(texts, special=False), 1):
            found.update(ids)
            after(number)
        return found

    def evaluation(
        self,
        dataset: str,
        samples: int | None,
        length: int,
        batch_size: int = 8,
        *,
        count_bytes: bool = False,
    ) -> Sequences:
        """The first `samples` rows (None: all) of the dataset, or of its held-out fifth, in file order;
        `count_bytes` of the text that a language model predicts."""
        text_bytes = None
        part = "held-out" if dataset in self._held_out else "all"
        corpus = self._corpus(dataset)
        documents = corpus.documents(part)
        if self.task in (GENERATION, TEXT_TO_TEXT):
            follows = pair_rows if corpus.paired() else prefix_rows
            cut = joined_rows if self.task == GENERATION else follows
            rows = cut(documents, self.encoder, length, samples)
            one = length * int(self.config.get("vocab_size", 1)) * 4
            batch_size = max(1, min(batch_size, LOGITS_BYTES // one))
            if count_bytes:
                again, joined = corpus.documents(part), cut is not pair_rows
                text_bytes = predicted_bytes(again, self.encoder, rows, length, joined=joined)
        else:
            label = self._label if self.task == CLASSIFICATION else None
            rows = document_rows(documents, self.encoder, length, samples, label)
        return replace(self._sequences(rows, batch_size, dataset, "evaluation"), text_bytes=text_bytes)

    def training(self, dataset: str, rows: int, length: int, seed: int) -> TrainingRows:
        """Up to `rows` rows to learn from, in an order chosen by `seed`, with class numbers where all have
        one.
        """
        sampled = self._sampled(dataset, rows, length, seed)
        if not sampled.rows:
            raise DatasetInsufficient(f"dataset {dataset!r} has no text to recover on")
        order = list(range(len(sampled.rows)))
        random.Random(seed).shuffle(order)
        return TrainingRows(sampled.ordered(order), self._pad, self._start, frozenset(sampled.keys))

    def _sequences(self, rows: Rows, batch_size: int, dataset: str, use: str) -> Sequences:
        if not rows.rows:
            raise DatasetInsufficient(f"dataset {dataset!r} has no text that could be used for {use}")
        sizes = [row.numel() for row in rows.rows]
        batches = [
            rows.batch(range(start, stop), self._pad, self._start)
            for start, stop in _spans(sizes, batch_size, self._pad is None)
        ]
        return Sequences(
            task=self.task,
            batches=tuple(batches),
            labels=self.class_names() if self.task == CLASSIFICATION else None,
            documents=rows.documents,
            sequences=len(rows.rows),
            tokens=rows.tokens,
            digest=rows.digest(),
            texts=frozenset(rows.keys),
        )

    def class_names(self) -> tuple[str, ...]:
        """The classes of the model's head, in the order of their numbers."""
        return class_names(self.config)

    def _label(self, label: Any) -> int:
        names = self.class_names()
        if isinstance(label, int) and 0 <= label < len(names):
            return label
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            if label.isdigit() and int(label) < len(names):
                return int(label)
        shown = "no label" if label is None else f"label {label!r}"
        raise DatasetInvalid(f"a document has {shown}, but the model's classes are {', '.join(names)}")


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a model's head, in the order of their numbers."""
    names = {int(key): str(value) for key, value in dict(config.get("id2label") or {}).items()}
    count = max(names, default=int(config.get("num_labels") or 2) - 1) + 1
    return tuple(names.get(number, f"LABEL_{number}") for number in range(count))


def _spans(sizes: Sequence[int], batch_size: int, equal: bool) -> Iterator[tuple[int, int]]:
    """(start, stop) of batches of at most `batch_size` rows; with `equal`, rows of a batch have one
    length.
    """
    start = 0
    for stop in range(1, len(sizes) + 1):
        full = stop - start == batch_size
        if stop == len(sizes) or full or (equal and sizes[stop] != sizes[start]):
            yield start, stop
            start = stop


class Keyed(Protocol):
    """A use of data that knows its texts or images by their keys."""

    @property
    def texts(self) -> frozenset[bytes]: ...


def overlap(first: Keyed, second: Keyed) -> int:
    """How many texts (white space apart), or images, two uses of data share."""
    return len(first.texts & second.texts)
