"""What calibration measures of the inputs of weights: norms of every input, and a bounded sample of
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compression.criteria.base import SiteStatistics
from compression.loading.streamed import Block, States

# Tokens on which reconstruction errors are computed: few enough to keep, many enough for two digits.
SAMPLE_TOKENS = 256
CHUNK_ROWS = 4096


def sample_positions(states: States, limit: int = SAMPLE_TOKENS) -> list[Tensor]:
    """For each batch, the positions (int64, in the flattened [b * s]) of a sample of its real tokens.

    At most `limit` positions in all, spread evenly over all real tokens of all batches; padding is never
    taken.
    """
    places = []
    for number in range(len(states)):
        real = states.real(number)
        size = states.batches[number]["input_ids"].numel()
        places.append(torch.arange(size) if real is None else real.reshape(-1).nonzero().flatten())
    total = sum(place.numel() for place in places)
    count = min(limit, total)
    picks = torch.arange(count, dtype=torch.int64) * total // max(count, 1)
    chosen, offset = [], 0
    for place in places:
        inside = picks[(picks >= offset) & (picks < offset + place.numel())] - offset
        chosen.append(place[inside])
        offset += place.numel()
    return chosen


class Collector:
    """Hooks on the linear layers of a block, for as long as it is entered (`with`).

    For every site: sums of squares of each input in float64 over all real tokens, and the inputs of the
    sampled tokens in float32. `batch(number)` must be called before each batch is run.
    """

    def __init__(
        self, block: Block, sites: Sequence[str], states: States, positions: Sequence[Tensor]
    ) -> None:
        linears = block.linears()
        self._modules: dict[str, nn.Module] = {site: linears[site] for site in sites}
        self._states = states
        self._positions = positions
        self._squares: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {site: [] for site in sites}
        self._tokens = 0
        self._handles: list[Any] = []
        self._number = 0
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def __enter__(self) -> Collector:
        for site, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(site)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def batch(self, number: int) -> None:
        """Say which batch runs next."""
        self._number = number
        self._last = None
        real = self._states.real(number)
        size = self._states.batches[number]["input_ids"].numel()
        self._tokens += size if real is None else int(real.sum())

    def _hook(self, site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            squares, sample = self._measure(args[0])
            known = self._squares.get(site)
            self._squares[site] = squares if known is None else known + squares
            self._samples[site].append(sample)

        return hook

    def _measure(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(sums of squares float64 [in], sampled inputs float32 [k, in]); query, key and value share
        theirs.
        """
        if self._last is not None and self._last[0] is inputs:
            return self._last[1], self._last[2]
        flat = inputs.reshape(-1, inputs.shape[-1])
        sample = flat[self._positions[self._number].to(flat.device)].to(torch.float32)
        real = self._states.real(self._number)
        if real is not None:
            flat = flat[real.reshape(-1).to(flat.device)]
        squares = torch.zeros(flat.shape[-1], dtype=torch.float64, device=flat.device)
        for start in range(0, flat.shape[0], CHUNK_ROWS):
            squares += flat[start : start + CHUNK_ROWS].to(torch.float32).square().sum(0, dtype=torch.float64)
        self._last = (inputs, squares, sample)
        return squares, sample

    def statistics(self, site: str) -> SiteStatistics:
        """Norms of the inputs of a site over everything that ran."""
        return SiteStatistics(self._squares[site].sqrt().to(torch.float32), self._tokens)

    def sample(self, site: str) -> Tensor:
        """Inputs of the sampled tokens, float32 [tokens, in]."""
        return torch.cat(self._samples[site])


def weight_error(dense: Tensor, pruned: Tensor) -> float:
    """||W - W'||_F / ||W||_F, summed in float64; 0 for a weight of zeros."""
    norm = float(dense.to(torch.float32).square().sum(dtype=torch.float64).sqrt())
    change = float((dense.to(torch.float32) - pruned).square().sum(dtype=torch.float64).sqrt())
    return change / norm if norm > 0 else 0.0


def reconstruction_error(inputs: Tensor, dense: Tensor, pruned: Tensor) -> float:
    """||X W^T - X W'^T||^2 / ||X W^T||^2 for inputs X [tokens, in]: the share of the output's energy that
    is lost.

    Products in float32, sums in float64; 0 when the output is zero.
    """
    first, second = dense.to(torch.float32), pruned.to(torch.float32)
    output = inputs @ first.T
    energy = float(output.square().sum(dtype=torch.float64))
    lost = float((inputs @ (first - second).T).square().sum(dtype=torch.float64))
    return lost / energy if energy > 0 else 0.0
