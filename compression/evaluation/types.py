"""What evaluation asks of its neighbours: batches, models that answer batch by batch, sources of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]
"""Model inputs by name, int64: ``input_ids`` [b, s]; ``attention_mask`` [b, s] (absent = all ones);
``token_type_ids`` [b, s] (optional); ``labels`` [b] (classification only: class numbers).
Models of images take ``pixel_values``, float32 [b, channels, height, width], and ``labels`` [b].
An encoder with a decoder also takes ``decoder_input_ids`` [b, t] with ``decoder_attention_mask`` [b, t];
``labels`` [b, t] are the tokens that follow each of them, ``IGNORED`` where there is none."""

IGNORED = -100
"""Stands among targets where nothing is to be predicted."""

GENERATION = "text-generation"
TEXT_TO_TEXT = "text2text-generation"
CLASSIFICATION = "text-classification"
FEATURES = "feature-extraction"
IMAGES = "image-classification"


class EvaluationData(Protocol):
    """Fixed batches to judge a model on. ``labels`` names the classes, in the order of their numbers."""

    @property
    def task(self) -> str: ...

    @property
    def batches(self) -> Sequence[Batch]: ...

    @property
    def labels(self) -> Sequence[str] | None: ...


class Evaluable(Protocol):
    """A model that answers batches in order, one output a batch.

    text-generation, text2text-generation: logits [b, s, vocabulary]; text-classification: logits
    [b, classes]; feature-extraction: last hidden state [b, s, hidden].
    """

    def outputs(self, batches: Sequence[Batch]) -> Iterator[Tensor]: ...


class TensorSource(Protocol):
    """Named tensors that are read one at a time."""

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def tensor(self, name: str) -> Tensor: ...


class Site(Protocol):
    """One prunable weight: its tensor name, the layer it is in, its kind (``q``, ``up``, ...)."""

    @property
    def name(self) -> str: ...

    @property
    def layer(self) -> int: ...

    @property
    def kind(self) -> str: ...


def model_inputs(batch: Batch, device: str | torch.device = "cpu") -> Batch:
    """The part of a batch that the model's ``forward`` takes, on ``device`` (labels are left out)."""
    return {name: value.to(device) for name, value in batch.items() if name != "labels"}


def dense_ids(batch: Batch, kept: Tensor) -> Batch:
    """A batch of a smaller vocabulary in the ids of the dense one; ``kept`` int64 are the rows of it that
    stay."""
    ids = ("input_ids", "decoder_input_ids")
    return {name: kept.to(value.device)[value] if name in ids else value for name, value in batch.items()}


def rows(batch: Batch) -> int:
    """How many sequences or images a batch has."""
    return int(next(iter(batch.values())).shape[0])


def real_tokens(batch: Batch) -> Tensor:
    """Bool [b, s]: True where a token is text, False where it is padding; of the tokens that outputs belong
    to, which are a decoder's where there is one."""
    side = "decoder_" if "decoder_input_ids" in batch else ""
    mask = batch.get(f"{side}attention_mask")
    if mask is None:
        return torch.ones_like(batch[f"{side}input_ids"], dtype=torch.bool)
    return mask.bool()


def read_tokens(batch: Batch) -> int:
    """Number of real tokens of a batch, those of the targets too."""
    if "decoder_input_ids" not in batch:
        return int(real_tokens(batch).sum())
    source = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    return int(real_tokens(source).sum()) + int(real_tokens(batch).sum())


def targets(batch: Batch) -> Tensor:
    """int64 [b, s]: the token that the logits at each position are to predict, ``IGNORED`` where there is
    none: the next token, or of an encoder with a decoder what the labels say."""
    if "decoder_input_ids" in batch:
        return batch["labels"]
    real = real_tokens(batch)
    found = torch.full_like(batch["input_ids"], IGNORED)
    found[:, :-1] = batch["input_ids"][:, 1:].masked_fill(~(real[:, :-1] & real[:, 1:]), IGNORED)
    return found
