"""What compression changed: divergence from the dense model, flipped examples, change per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compression.evaluation.types import Batch, real_tokens


class Divergence:
    """Distance between the answers of the dense model and of another, position by position.

    Mean Kullback-Leibler divergence KL(dense || other) in nats, the share of positions where both name the
    same most likely class (top-1 agreement), and the largest difference between two logits.
    """

    def __init__(self) -> None:
        self.positions = 0
        self.kl = 0.0
        self.agreed = 0
        self.largest = 0.0

    def add(self, dense: Tensor, other: Tensor, batch: Batch) -> None:
        """Add logits of one batch: [b, s, v] (padding is left out) or [b, c]."""
        if dense.dim() == 3:
            keep = real_tokens(batch).to(dense.device)
            for row in range(dense.shape[0]):
                self._add(dense[row][keep[row]], other[row][keep[row].to(other.device)])
        else:
            self._add(dense, other)

    def _add(self, dense: Tensor, other: Tensor) -> None:
        if dense.shape[0] == 0:
            return
        p, q = dense.float(), other.float().to(dense.device)
        log_p, log_q = functional.log_softmax(p, -1), functional.log_softmax(q, -1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
        self.agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.largest = max(self.largest, float((p - q).abs().max()))
        self.positions += dense.shape[0]

    def result(self) -> dict[str, Any]:
        """``mean_kl`` (nats), ``top1_agreement`` (0..1), ``max_abs_logit_difference``, ``positions``."""
        if self.positions == 0:
            return {"mean_kl": None, "top1_agreement": None, "max_abs_logit_difference": None, "positions": 0}
        mean = self.kl / self.positions
        return {
            "mean_kl": max(mean, 0.0) if math.isfinite(mean) else None,
            "top1_agreement": self.agreed / self.positions,
            "max_abs_logit_difference": self.largest if math.isfinite(self.largest) else None,
            "positions": self.positions,
        }


class Cosine:
    """Cosine between the mean-pooled embeddings of the dense encoder and of another, text by text."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add(self, dense: Tensor, other: Tensor, batch: Batch, dense_batch: Batch | None = None) -> None:
        """Add last hidden states [b, s, h] of one batch; ``dense_batch`` are the same texts as the dense
        encoder read them, if it has other tokens."""
        first = mean_pool(dense, real_tokens(batch if dense_batch is None else dense_batch))
        second = mean_pool(other, real_tokens(batch))
        self.values += functional.cosine_similarity(first, second.to(first.device), dim=-1).tolist()

    def result(self) -> dict[str, Any]:
        """``mean``, ``minimum``, ``p05`` (5th percentile), ``texts``."""
        if not self.values or not all(math.isfinite(value) for value in self.values):
            return {"mean": None, "minimum": None, "p05": None, "texts": len(self.values)}
        values = torch.tensor(self.values, dtype=torch.float64)
        return {
            "mean": float(values.mean()),
            "minimum": float(values.min()),
            "p05": float(values.quantile(0.05)),
            "texts": len(self.values),
        }


def mean_pool(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean over real tokens: hidden [b, s, h], real bool [b, s] -> float32 [b, h]."""
    weight = real.to(hidden.device).float().unsqueeze(-1)
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)


NEAR = 5


class ClassTally:
    """Predictions of a classifier, right and wrong, class by class."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.truth: list[int] = []
        self.predicted: list[int] = []
        self.nll = 0.0
        self.near: int | None = None
        """How many are among the five most likely; None where there are no more than five classes."""

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add logits [b, c]; ``batch["labels"]`` int64 [b]."""
        labels = batch["labels"].to(logits.device)
        self.nll += float(functional.cross_entropy(logits.float(), labels, reduction="none").double().sum())
        if logits.shape[-1] > NEAR:
            nearest = logits.float().topk(NEAR).indices == labels[:, None]
            self.near = (self.near or 0) + int(nearest.sum())
        self.truth += batch["labels"].tolist()
        self.predicted += logits.float().argmax(-1).tolist()

    def result(self) -> dict[str, Any]:
        """``metrics`` (accuracy, loss, of more than five classes top5_accuracy), ``classes``,
        ``predictions`` and ``truth`` (class numbers).

        ``classes`` is a list of {label, examples, correct, predicted}.
        """
        total = len(self.truth)
        right = sum(a == b for a, b in zip(self.truth, self.predicted, strict=True))
        classes = []
        for number in range(max([*self.truth, *self.predicted, len(self.labels) - 1], default=-1) + 1):
            pairs = [(a, b) for a, b in zip(self.truth, self.predicted, strict=True) if number in (a, b)]
            classes.append(
                {
                    "label": self.labels[number] if number < len(self.labels) else str(number),
                    "examples": sum(a == number for a, _ in pairs),
                    "correct": sum(a == b for a, b in pairs),
                    "predicted": sum(b == number for _, b in pairs),
                }
            )
        metrics: dict[str, float | None] = {"accuracy": None}
        if total:
            metrics = {"accuracy": right / total, "loss": self.nll / total}
        if total and self.near is not None:
            metrics["top5_accuracy"] = self.near / total
        return {
            "metrics": metrics,
            "classes": classes,
            "predictions": self.predicted,
            "truth": self.truth,
        }
