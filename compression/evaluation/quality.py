"""Quality of a model on fixed batches: perplexity, accuracy, closeness to the dense model.

All sums are in float64, all log-probabilities in float32 or wider, whatever the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compression.errors import CompressionError
from compression.evaluation.damage import ClassTally, Cosine, Divergence
from compression.evaluation.types import (
    CLASSIFICATION,
    FEATURES,
    GENERATION,
    IGNORED,
    IMAGES,
    TEXT_TO_TEXT,
    Batch,
    Evaluable,
    EvaluationData,
    read_tokens,
    rows,
    targets,
)

Progress = Callable[[int, int], None]

METRICS: dict[str, tuple[str, ...]] = {
    GENERATION: ("perplexity", "bits_per_byte"),
    TEXT_TO_TEXT: ("perplexity", "bits_per_byte"),
    CLASSIFICATION: ("accuracy",),
    FEATURES: ("embedding_cosine",),
    IMAGES: ("accuracy", "top5_accuracy"),
    "other": (),
}
"""The metrics that each task knows, the first being the one that headlines a report (of models that read a
text as other tokens than the dense one: bits per byte)."""


class UnknownMetric(CompressionError):
    """A metric was asked for that the task does not have."""

    code = "metric_unknown"


class _Perplexity:
    """exp of the mean negative log-likelihood over every predicted token, padding left out; bits per byte of
    the text that these tokens stand for, which models with different tokens can be compared by."""

    def __init__(self) -> None:
        self.nll = 0.0
        self.tokens = 0

    def add(self, output: Tensor, batch: Batch) -> None:
        loss, tokens = next_token_nll(output, batch)
        self.nll += loss
        self.tokens += tokens

    def result(self, text_bytes: int | None) -> dict[str, Any]:
        if self.tokens == 0:
            return {"loss": None, "perplexity": None}
        loss = self.nll / self.tokens
        found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else None}
        return found | ({"bits_per_byte": self.nll / math.log(2) / text_bytes} if text_bytes else {})


def next_token_nll(logits: Tensor, batch: Batch) -> tuple[float, int]:
    """Sum of negative log-likelihoods (nats) of what ``logits`` [b, s, v] are to predict, and their
    number."""
    wanted = targets(batch).to(logits.device)
    total = 0.0
    for row in range(
        logits.shape[0]
    ):  # one sequence at a time: float32 log-probabilities are vocabulary-sized
        losses = functional.cross_entropy(
            logits[row].float(), wanted[row], reduction="none", ignore_index=IGNORED
        )
        total += float(losses.double().sum())
    return total, int((wanted != IGNORED).sum())


def evaluate(
    model: Evaluable,
    data: EvaluationData,
    metrics: Sequence[str],
    *,
    reference: Evaluable | None = None,
    reference_batches: Sequence[Batch] | None = None,
    text_bytes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge ``model`` on ``data``; with ``reference`` (the dense model) also say how far it moved.

    ``reference_batches`` are the same texts, row by row, as the reference reads them, where it has other
    tokens (of
    classifiers and headless encoders). ``text_bytes`` are those that the predicted tokens stand for, from
    which ``bits_per_byte`` follows.

    Returns plain JSON: ``metrics`` {name: number | None}, ``counts``, for classifiers ``classes`` and
    ``predictions``, and ``divergence`` (None without a reference). A number that is not finite is given as
    None, so that the report stays valid JSON. ``progress`` hears of finished batches.

    Raises UnknownMetric.
    """
    check_metrics(data.task, metrics)
    perplexity = _Perplexity() if data.task in (GENERATION, TEXT_TO_TEXT) else None
    classes = ClassTally(data.labels or ()) if data.task in (CLASSIFICATION, IMAGES) else None
    cosine = Cosine() if data.task == FEATURES else None
    divergence = None if data.task == FEATURES else Divergence()
    counted = ("images",) if data.task == IMAGES else ("sequences", "tokens")
    counts = {"batches": len(data.batches), **dict.fromkeys(counted, 0)}
    with torch.inference_mode():
        read = data.batches if reference_batches is None else reference_batches
        expected = None if reference is None else zip(read, reference.outputs(read), strict=True)
        for number, (batch, output) in enumerate(zip(data.batches, model.outputs(data.batches), strict=True)):
            counts["images" if data.task == IMAGES else "sequences"] += rows(batch)
            if data.task != IMAGES:
                counts["tokens"] += read_tokens(batch)
            if perplexity is not None:
                perplexity.add(output, batch)
            if classes is not None:
                classes.add(output, batch)
            if expected is not None:
                other_batch, other = next(expected)
                if divergence is not None:
                    divergence.add(other, output, batch)
                if cosine is not None:
                    cosine.add(other, output, batch, other_batch)
            if progress is not None:
                progress(number + 1, len(data.batches))
    if text_bytes is not None:
        counts["text_bytes"] = text_bytes
    return _collect(perplexity, classes, cosine, divergence, counts, reference is not None)


def check_metrics(task: str, metrics: Sequence[str]) -> None:
    """Raises UnknownMetric when ``task`` does not know one of ``metrics``."""
    known = METRICS.get(task, ())
    for metric in metrics:
        if metric not in known:
            raise UnknownMetric(f"metric {metric!r} is unknown for {task}; known: {', '.join(known)}")


def _collect(
    perplexity: _Perplexity | None,
    classes: ClassTally | None,
    cosine: Cosine | None,
    divergence: Divergence | None,
    counts: dict[str, int],
    compared: bool,
) -> dict[str, Any]:
    result: dict[str, Any] = {"metrics": {}, "counts": counts, "divergence": None}
    if perplexity is not None:
        result["metrics"].update(perplexity.result(counts.get("text_bytes")))
        counts["predicted_tokens"] = perplexity.tokens
    if classes is not None:
        tally = classes.result()
        result["metrics"].update(tally.pop("metrics"))
        result.update(tally)
    if cosine is not None:
        similarity = cosine.result() if compared else None
        result["metrics"]["embedding_cosine"] = similarity["mean"] if similarity else 1.0
        result["divergence"] = similarity and {"embedding_cosine": similarity}
    if divergence is not None and compared:
        result["divergence"] = divergence.result()
    result["metrics"] = {name: finite(value) for name, value in result["metrics"].items()}
    return result


def finite(value: float | None) -> float | None:
    """``value``, or None when it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None
