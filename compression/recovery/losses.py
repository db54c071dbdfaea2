"""What a recovery minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.evaluation import stock
from compression.evaluation.types import (
    CLASSIFICATION,
    FEATURES,
    GENERATION,
    IGNORED,
    IMAGES,
    TEXT_TO_TEXT,
    Batch,
    dense_ids,
    real_tokens,
    targets,
)
from compression.recovery.training import Loss


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(teacher || student), in nats, times the square of ``temperature``; logits [n, c].

    (Hinton, Vinyals, Dean 2015, arXiv 1503.02531.)
    """
    target = functional.log_softmax(teacher.float() / temperature, -1)
    guess = functional.log_softmax(student.float() / temperature, -1)
    divergence = (target.exp() * (target - guess)).sum(-1)
    return divergence.mean() * temperature**2


def distillation(
    student: nn.Module, teacher: nn.Module, task: str, temperature: float, rows: Tensor | None = None
) -> Loss:
    """Distance to the teacher: KL on the logits of real tokens, or mean squared error of hidden states.
    ``rows`` int64
    are those of the teacher's vocabulary that the student has, in its order (None: all): the teacher reads
    the same tokens and answers with its distribution over the rows that stay."""

    def loss(batch: Batch) -> Tensor:
        answer = stock.answer(student, batch, task)
        # detached and not under inference_mode: the loss saves the target for the backward pass
        target = _quietly(teacher, batch if rows is None else dense_ids(batch, rows), task)
        if rows is not None and task in (GENERATION, TEXT_TO_TEXT):
            target = target[..., rows.to(target.device)]
        if task in (CLASSIFICATION, IMAGES):
            return kl(target, answer, temperature)
        real = real_tokens(batch).to(answer.device)
        if task == FEATURES:
            return functional.mse_loss(answer[real].float(), target[real].float())
        return kl(target[real], answer[real], temperature)

    return loss


def _quietly(model: nn.Module, batch: Batch, task: str) -> Tensor:
    with torch.no_grad():
        return stock.answer(model, batch, task)


def task_loss(student: nn.Module, task: str) -> Loss:
    """Cross-entropy of the next token, of the target's tokens, or of the label."""

    def loss(batch: Batch) -> Tensor:
        answer = stock.answer(student, batch, task).float()
        if task in (CLASSIFICATION, IMAGES):
            return functional.cross_entropy(answer, batch["labels"].to(answer.device))
        wanted = targets(batch).to(answer.device)
        keep = wanted != IGNORED
        return functional.cross_entropy(answer[keep], wanted[keep])

    if task not in (GENERATION, TEXT_TO_TEXT, CLASSIFICATION, IMAGES):
        raise ValueError(f"{task} has no loss of its own")
    return loss
