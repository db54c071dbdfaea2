"""Layers and tasks that the tests of updates share."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.granularity.base import parse_granularity
from compression.granularity.rule import Rule
from compression.updates.base import Cut, Task
from compression.updates.quadratic import (
    row_errors,
)

# Updates that refuse blocks of weights.
WITHOUT_BLOCKS = {"exact-obs"}
PATTERNS = ["unstructured", "2:4", "4:8", "3:7", "4x4"]
CASES = [("unstructured", "row"), ("unstructured", "layer"), *((text, "row") for text in PATTERNS[1:])]


def make_layer(rows: int, columns: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and inputs [tokens, columns] that are correlated, off centre and of unequal
    size.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = torch.arange(1, columns + 1) ** -0.5 * columns**0.5
    inputs = (normal(tokens, columns) * spectrum) @ normal(columns, columns) / columns**0.5
    inputs = (inputs + 0.3 * normal(tokens, columns) + 0.3 * normal(columns)) * torch.exp(
        0.5 * normal(columns)
    )
    return normal(rows, columns) * (0.5 + torch.rand(rows, 1, generator=generator)), inputs


def make_task(
    weight: Tensor, inputs: Tensor, text: str = "unstructured", sparsity: float = 0.5, comparison: str = "row"
) -> Task:
    """Magnitude scores, and a rule that removes `sparsity` of the weight."""
    pattern = parse_granularity(text)
    unit = pattern.shape[0] * pattern.shape[1]
    remove = round(sparsity * weight.numel() / unit) * unit
    if pattern.kind == "n:m":
        remove = weight.numel() // pattern.group * (pattern.group - pattern.keep)
    hessian = inputs.T @ inputs
    statistics = SiteStatistics(hessian.diagonal().sqrt(), inputs.shape[0], inputs.mean(0), hessian)
    return Task(weight, Rule(pattern, remove, comparison), statistics, "site", has_bias=True)


def first_cut(task: Task) -> Cut:
    mask = task.rule.mask(task.dense.abs(), task.dense)
    return Cut(task.dense * mask, mask)


def error(task: Task, cut: Cut) -> float:
    assert task.statistics is not None
    return float(row_errors(task.dense, cut.weight, task.statistics.need("hessian")).sum())


def check(task: Task, cut: Cut) -> None:
    """What holds for every cut."""
    removed, start = ~cut.mask, ~first_cut(task).mask
    assert cut.mask.dtype == torch.bool
    assert cut.weight.dtype == torch.float32
    assert bool(torch.isfinite(cut.weight).all())
    assert bool((cut.weight[removed] == 0).all())
    assert int(removed.sum()) == int(start.sum())
    pattern = task.rule.pattern
    if pattern.kind == "n:m":
        assert bool((cut.mask.reshape(-1, pattern.group).sum(1) == pattern.keep).all())
    elif pattern.kind == "block":
        rows, columns = pattern.shape
        parts = cut.mask.reshape(cut.mask.shape[0] // rows, rows, -1, columns).sum((1, 3))
        assert set(parts.unique().tolist()) <= {0, rows * columns}
    elif task.rule.comparison == "row":
        assert removed.sum(1).tolist() == start.sum(1).tolist()
    if pattern.kind == "unstructured" and int((task.dense == 0).sum()):
        assert bool(removed[task.dense == 0].all())


def singular_inputs(kind: str) -> Tensor:
    inputs = make_layer(16, 32, 80, 3)[1]
    if kind == "few tokens":
        return inputs[:6]
    if kind == "copies":
        inputs[:, 8:16] = inputs[:, :8]
    else:
        inputs[:, [0, 5, 31]] = 0.0
    return inputs
