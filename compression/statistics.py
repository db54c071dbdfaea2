"""What calibration measures of the inputs of weights: norms of every input, and a bounded sample of
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Sums:
    """What is summed over the tokens of one input; weights that share an input share these."""

    squares: Tensor
    sums: Tensor | None
    hessian: Tensor | None
    sample: list[Tensor] = field(default_factory=list)


class Collector:
    """Hooks on the linear layers of a block, for as long as it is entered (`with`).

    For every site: sums of squares of each input over all real tokens (float32 within CHUNK_ROWS tokens,
    float64 beyond), the inputs of the sampled tokens in float32, and by `needs` (of `criteria.base.NEEDS`)
    their sums ("means") and the float32 matrix of their products ("hessian"). `batch(number)` must be
    called before each batch is run; it takes the batch's token weights, float32 [real tokens], where tokens
    weigh differently.
    """

    def __init__(
        self,
        block: Block,
        sites: Sequence[str],
        states: States,
        positions: Sequence[Tensor],
        needs: frozenset[str] = frozenset(),
    ) -> None:
        linears = block.linears()
        self._modules: dict[str, nn.Module] = {site: linears[site] for site in sites}
        self._states = states
        self._positions = positions
        self._needs = needs
        self._leaders: dict[str, str] = {}
        self._sums: dict[str, _Sums] = {}
        self._tokens = 0
        self._handles: list[Any] = []
        self._number = 0
        self._weights: Tensor | None = None
        self._last: tuple[Tensor, str] | None = None

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

    def batch(self, number: int, weights: Tensor | None = None) -> None:
        """Say which batch runs next, and what its real tokens weigh."""
        self._number = number
        self._weights = weights
        self._last = None
        self._tokens += self._states.tokens(number)

    def _hook(self, site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Tensor = args[0]
            if self._last is not None and self._last[0] is inputs:
                # Query, key and value (gate and up) share their input and so everything that is known of it.
                leader = self._last[1]
            else:
                leader = site
                self._measure(site, inputs)
                self._last = (inputs, site)
            if self._leaders.setdefault(site, leader) != leader:
                raise RuntimeError(f"{site} shares its input in some batches only")

        return hook

    def _measure(self, site: str, inputs: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1])
        if site not in self._sums:
            self._sums[site] = self._zeros(flat.shape[-1], flat.device)
        sums = self._sums[site]
        sums.sample.append(flat[self._positions[self._number].to(flat.device)].to(torch.float32))
        real = self._states.real(self._number)
        if real is not None:
            flat = flat[real.reshape(-1).to(flat.device)]
        for start in range(0, flat.shape[0], CHUNK_ROWS):
            chunk = flat[start : start + CHUNK_ROWS].to(torch.float32)
            if self._weights is not None:
                weights = self._weights[start : start + CHUNK_ROWS, None].to(chunk.device)
                self._add(sums, chunk * weights, chunk * weights.square())
            else:
                self._add(sums, chunk, chunk)

    def _add(self, sums: _Sums, chunk: Tensor, weighted: Tensor) -> None:
        """`chunk` carries each token's weight once, `weighted` twice."""
        if sums.sums is not None:
            sums.sums += weighted.sum(0)
        if sums.hessian is not None:
            sums.hessian.addmm_(chunk.T, chunk)
        else:
            sums.squares += chunk.square().sum(0)

    def _zeros(self, width: int, device: torch.device) -> _Sums:
        return _Sums(
            torch.zeros(width, dtype=torch.float64, device=device),
            torch.zeros(width, dtype=torch.float64, device=device) if "means" in self._needs else None,
            torch.zeros(width, width, device=device) if "hessian" in self._needs else None,
        )

    def statistics(self, site: str) -> SiteStatistics:
        """What is known of the inputs of a site over everything that ran."""
        sums = self._sums[self._leaders[site]]
        squares = sums.squares if sums.hessian is None else sums.hessian.diagonal()
        means = None if sums.sums is None else (sums.sums / max(1, self._tokens)).to(torch.float32)
        norms = squares.sqrt().to(torch.float32)
        return SiteStatistics(norms, self._tokens, means, sums.hessian)

    def sample(self, site: str) -> Tensor:
        """Inputs of the sampled tokens, float32 [tokens, in]."""
        sums = self._sums[self._leaders[site]]
        if len(sums.sample) > 1:
            sums.sample[:] = [torch.cat(sums.sample)]
        return sums.sample[0]


def weight_error(dense: Tensor, pruned: Tensor) -> float:
    """||W - W'||_F / ||W||_F, summed in float64; 0 for a weight of zeros."""
    norm = float(dense.to(torch.float32).square().sum(dtype=torch.float64).sqrt())
    change = float((dense.to(torch.float32) - pruned).square().sum(dtype=torch.float64).sqrt())
    return change / norm if norm > 0 else 0.0


def reconstruction_error(inputs: Tensor, dense: Tensor, pruned: Tensor, bias: Tensor | None = None) -> float:
    """||X W^T - X W'^T - b||^2 / ||X W^T||^2 for inputs X [tokens, in]: the share of the output's energy that
    is lost; b [out] is what was added to the bias.

    Products in float32, sums in float64; 0 when the output is zero.
    """
    first, second = dense.to(torch.float32), pruned.to(torch.float32)
    output = inputs @ first.T
    energy = float(output.square().sum(dtype=torch.float64))
    change = inputs @ (first - second).T
    if bias is not None:
        change = change - bias
    lost = float(change.square().sum(dtype=torch.float64))
    return lost / energy if energy > 0 else 0.0
