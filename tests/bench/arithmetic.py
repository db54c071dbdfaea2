"""How near SparseGPT's own arithmetic comes to the machine's rate of matrix products.

`script/bench arithmetic [--shapes 2048x2048 ...]`. Per weight: seconds of the update alone (Hessian given),
its necessary floating-point operations over these seconds, and that as a share of the rate of one large
product.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.device import prepare_device
from compression.granularity.base import parse_granularity
from compression.granularity.rule import Rule
from compression.updates import updates
from compression.updates.base import Cut, Task
from tests.bench.common import table, write

SHAPES = ("1024x1024", "2048x2048", "5632x2048", "2048x5632")


def operations(rows: int, columns: int) -> float:
    """Additions and multiplications that the method cannot do without: the factor of the Hessian (c^3 / 3),
    and for each row what the columns before give to each column (2 * c^2 / 2)."""
    return columns**3 / 3 + rows * columns**2


def task_of(rows: int, columns: int, pattern: str) -> tuple[Task, Cut]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator) * torch.rand(columns, generator=generator)
    hessian = inputs.T @ inputs
    statistics_ = SiteStatistics(hessian.diagonal().sqrt(), 2 * columns, hessian=hessian)
    rule = Rule(parse_granularity(pattern), rows * columns // 2)
    mask = rule.mask(weight.abs(), weight)
    return Task(weight, rule, statistics_, "w", False), Cut(weight * mask, mask)


def seconds(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    prepare_device("cpu", arguments.threads)
    rows_of_table = []
    for shape in arguments.shapes:
        rows, columns = map(int, shape.split("x"))
        left, right = torch.randn(rows, columns), torch.randn(columns, columns)
        for pattern in ("unstructured", "2:4"):
            task, cut = task_of(rows, columns, pattern)

            def product(left: Tensor = left, right: Tensor = right) -> Tensor:
                return left @ right

            def update(task: Task = task, cut: Cut = cut) -> Cut:
                return updates["sparsegpt"].apply(task, cut)

            product()
            # In turns, so that both meet the same machine.
            pairs = [(seconds(product), seconds(update)) for _ in range(arguments.repeats)]
            rate = 2 * rows * columns**2 / statistics.median(pair[0] for pair in pairs)
            spent = statistics.median(pair[1] for pair in pairs)
            own = operations(rows, columns) / spent
            rows_of_table.append([shape, pattern, spent, own / 1e9, rate / 1e9, own / rate])
            print(rows_of_table[-1], flush=True)
    head = ["weight", "granularity", "seconds", "GFLOP/s", "GFLOP/s of a product", "share"]
    text = (
        f"float32, {arguments.threads} threads; median of {arguments.repeats} runs in turns with a matrix "
        "product of the weight with a square one. Counted are only operations that the method cannot do "
        "without: the factor of the Hessian and one triangular sweep; choosing the mask is not counted but "
        "is in the seconds.\n\n" + table(head, rows_of_table)
    )
    write("arithmetic", "SparseGPT's arithmetic", "script/bench arithmetic", text)


if __name__ == "__main__":
    main()
