"""What calibration measures of the inputs of weights: norms of every input, and a bounded sample of
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compression.criteria.base import SiteStatistics, check_inputs
from compression.expert_statistics import ExpertCollector
from compression.granularity.base import row_slices
from compression.loading.streamed import Block, States
from compression.sums import Sums

# Tokens on which reconstruction errors are computed: few enough to keep, many enough for two digits.
SAMPLE_TOKENS = 128


class Positions(list[Tensor]):
    """For each batch, the positions (int64, in the flattened [b * s]) of a sample of its real tokens;
    `memory` the same for the encoder's output, in a decoder."""

    memory: Sequence[Tensor] = ()


def sample_positions(states: States, limit: int = SAMPLE_TOKENS) -> Positions:
    """A sample of the real tokens of the list of blocks that the states are in.

    At most `limit` positions in all, spread evenly over all real tokens of all batches; padding is never
    taken.
    """
    numbers = range(len(states))
    found = Positions(
        spread_evenly([_places(states.real(number), states.places(number)) for number in numbers], limit)
    )
    if states.memory is not None:
        sizes = [states.memory[number].shape[:-1].numel() for number in numbers]
        places = [_places(states.real_memory(number), size) for number, size in enumerate(sizes)]
        found.memory = spread_evenly(places, limit)
    return found


def _places(real: Tensor | None, size: int) -> Tensor:
    return torch.arange(size) if real is None else real.reshape(-1).nonzero().flatten()


def spread_evenly(places: Sequence[Tensor], limit: int) -> list[Tensor]:
    """At most `limit` of the places, spread evenly."""
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

    For every site: sums of squares of each input over all real tokens (see `sums.Sums`), the inputs of the
    sampled tokens in float32, and by `needs` (of `criteria.base.NEEDS`) their sums ("means") and the float32
    matrix of their products ("hessian"). `batch(number)` must be called before each batch is run; it takes
    the batch's token weights, float32 [real tokens], where tokens weigh differently. An expert's weights see
    the tokens that are routed to it (`expert_statistics`), and those of a decoder that take the encoder's
    output see the tokens of the input, which `batch` may be given weights of too.
    """

    def __init__(
        self,
        block: Block,
        sites: Sequence[str],
        states: States,
        positions: Positions,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        linears = block.linears()
        experts = block.experts
        inside = [site for site in sites if experts is not None and site in experts.pieces]
        self._experts: ExpertCollector | None = None
        if experts is not None and inside:
            sampled = any(len(places) for places in positions)
            self._experts = ExpertCollector(experts, inside, needs, len(states), sampled=sampled)
        self._modules: dict[str, nn.Module] = {site: linears[site] for site in sites if site not in inside}
        self._inside = frozenset(inside)
        self._states = states
        self._positions = positions
        self._needs = needs
        self._leaders: dict[str, str] = {}
        self._sums: dict[str, Sums] = {}
        self._handles: list[Any] = []
        self._number = 0
        self._weights: Tensor | None = None
        self._memory_weights: Tensor | None = None
        self._last: tuple[Tensor, str] | None = None

    def __enter__(self) -> Collector:
        for site, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(site)))
        if self._experts is not None:
            self._handles.append(self._experts.module.register_forward_pre_hook(self._look))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def batch(self, number: int, weights: Tensor | None = None, memory: Tensor | None = None) -> None:
        """Say which batch runs next, and what its real tokens and those of the encoder's output weigh."""
        self._number = number
        self._weights = weights
        self._memory_weights = memory
        self._last = None

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert self._experts is not None
        self._experts.look(args, self._states.real(self._number), self._weights)

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
            self._sums[site] = Sums.zeros(flat.shape[-1], flat.device, self._needs)
        sums = self._sums[site]
        # Keys and values of a decoder's second attention are made of the encoder's output itself.
        lent = inputs is self._states.lent
        sampled = (self._positions.memory if lent else self._positions)[self._number]
        sums.sample.append(flat[sampled.to(flat.device)].to(torch.float32))
        real = self._states.real_memory(self._number) if lent else self._states.real(self._number)
        if real is not None:
            flat = flat[real.reshape(-1).to(flat.device)]
        sums.add(flat, self._memory_weights if lent else self._weights)

    def _of(self, site: str) -> Sums:
        if self._experts is not None and site in self._inside:
            return self._experts.sums(site)
        return self._sums[self._leaders[site]]

    def statistics(self, site: str) -> SiteStatistics:
        """What is known of the inputs of a site over everything that ran. Raises ActivationsNotFinite."""
        return check_inputs(self._of(site).statistics(), site)

    def sample(self, site: str) -> Tensor:
        """Inputs of the sampled tokens, float32 [tokens, in]."""
        return self._of(site).sampled()

    def forget(self, site: str) -> None:
        """Let go of what is known of inputs once no other weight has them; not of experts."""
        leader = self._leaders.pop(site, None)
        if leader is not None and leader not in self._leaders.values():
            self._sums.pop(leader, None)

    def routed(self, site: str) -> int | None:
        """How many tokens were routed to the expert that a site belongs to; None where there is no choice."""
        return self._experts.routed(site) if self._experts is not None and site in self._inside else None


def weight_error(dense: Tensor, pruned: Tensor) -> float:
    """||W - W'||_F / ||W||_F, rows in float32, their sum in float64; 0 for a weight of zeros."""
    norms, changes = [], []
    for rows in row_slices(dense):
        before = dense[rows].to(torch.float32)
        norms.append(torch.linalg.vector_norm(before, dim=1))
        changes.append(torch.linalg.vector_norm(before - pruned[rows], dim=1))
    norm, change = (float(torch.cat(parts).double().square().sum()) for parts in (norms, changes))
    return math.sqrt(change / norm) if norm > 0 else 0.0


def reconstruction_error(inputs: Tensor, dense: Tensor, pruned: Tensor, bias: Tensor | None = None) -> float:
    """||X W^T - X W'^T - b||^2 / ||X W^T||^2 for inputs X [tokens, in]: the share of the output's energy that
    is lost; b [out] is what was added to the bias.

    Products in float32, sums over tokens in float64; 0 when the output is zero.
    """
    energy = lost = 0.0
    for rows in row_slices(dense):
        before = dense[rows].to(torch.float32)
        change = inputs @ (before - pruned[rows]).T
        if bias is not None:
            change -= bias[rows]
        energy += _energy(inputs @ before.T)
        lost += _energy(change)
    return lost / energy if energy > 0 else 0.0


def _energy(outputs: Tensor) -> float:
    return float(torch.linalg.vector_norm(outputs, dim=1).double().square().sum())


def nonzeros(weight: Tensor) -> int:
    """How many elements of a tensor [out, in] are not zero."""
    return sum(int((weight[rows] != 0).sum(dtype=torch.int64)) for rows in row_slices(weight))
