"""A second opinion on MACs: the products that a forward pass really makes, counted while it runs."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compression.evaluation import stock
from compression.evaluation.types import Batch


def counted_macs(model: nn.Module, batch: Batch, task: str) -> int:
    """Multiply-accumulates of every matrix product that ``model`` makes for ``batch``.

    torch counts two operations a multiply-accumulate. Attention must be of the ``eager`` kind, so that its
    products are ordinary ones.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        stock.answer(model, batch, task)
    return int(counter.get_total_flops()) // 2
