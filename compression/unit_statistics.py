"""What calibration measures of units (neurons, heads): the inputs of the weights that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.structures import Group
from compression.criteria.base import ActivationsNotFinite
from compression.expert_statistics import between
from compression.loading.streamed import Block, States

CHUNK_ROWS = 1024


@dataclass
class UnitStatistics:
    """Of the inputs x of one weight over all real calibration tokens: `means` and `variances` float64 [in]
    (the variance divides by the number of tokens), and of each unit u `magnitudes` float64 [units], the
    2-norm over sequences of the mean over a sequence's tokens of ||x_u||_2, and `lengths` float64 [units],
    the mean over sequences of the 2-norm of x_u over a sequence's tokens."""

    tokens: int
    means: Tensor
    variances: Tensor
    magnitudes: Tensor
    lengths: Tensor

    @property
    def norms(self) -> Tensor:
        """The 2-norm of each input over all tokens: float64 [in]."""
        return ((self.variances + self.means.square()) * self.tokens).sqrt()


class _Running:
    """Sums over tokens that are merged chunk by chunk (Chan, Golub, LeVeque 1979), in float64."""

    def __init__(self, inputs: int, units: int, device: torch.device) -> None:
        self.tokens = 0
        self.units = units
        self.means = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.deviations = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.magnitudes = torch.zeros(units, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(units, dtype=torch.float64, device=device)
        self.sequences = 0

    def add(self, rows: Tensor) -> None:
        """Add the real tokens [tokens, in] of one sequence."""
        if not len(rows):
            return
        sums = torch.zeros(self.units, dtype=torch.float64, device=rows.device)
        squares = torch.zeros_like(sums)
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS].to(torch.float64)
            mean, count = chunk.mean(0), len(chunk)
            apart, total = mean - self.means, self.tokens + count
            self.deviations += (chunk - mean).square().sum(0) + apart.square() * (self.tokens * count / total)
            self.means += apart * (count / total)
            self.tokens = total
            norms = torch.linalg.vector_norm(chunk.reshape(count, self.units, -1), dim=2)
            sums += norms.sum(0)
            squares += norms.square().sum(0)
        self.magnitudes += (sums / len(rows)).square()
        self.lengths += squares.sqrt()
        self.sequences += 1

    def statistics(self) -> UnitStatistics:
        """What is known so far."""
        variances = self.deviations / max(1, self.tokens)
        lengths = self.lengths / max(1, self.sequences)
        return UnitStatistics(self.tokens, self.means, variances, self.magnitudes.sqrt(), lengths)


class UnitCollector:
    """Hooks on the weights of a block that read units, for as long as it is entered (`with`).

    The units of an expert are seen on the tokens that are routed to it, however little the router weighs
    them. `batch(number)` must be called before each batch is run.
    """

    def __init__(self, block: Block, groups: Iterable[Group], states: States) -> None:
        linears = block.linears()
        self._groups = {group.output: group for group in groups}
        self._modules = {name: linears[name] for name, one in self._groups.items() if one.expert is None}
        self._routed = [group for group in self._groups.values() if group.expert is not None]
        self._layer = block.experts
        self._states = states
        self._running: dict[str, _Running] = {}
        self._handles: list[Any] = []
        self._number = 0

    def __enter__(self) -> UnitCollector:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name)))
        if self._routed and self._layer is not None:
            self._handles.append(self._layer.module.register_forward_pre_hook(self._look))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def batch(self, number: int) -> None:
        """Say which batch runs next."""
        self._number = number

    def _add(self, name: str, rows: Tensor) -> None:
        """Add the tokens [tokens, in] of one sequence."""
        if name not in self._running:
            self._running[name] = _Running(rows.shape[-1], self._groups[name].count, rows.device)
        self._running[name].add(rows)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Tensor = args[0]
            rows, places = self._states.hidden[self._number].shape[:2]
            sequences = inputs.reshape(rows, places, inputs.shape[-1])
            real = self._states.real(self._number)
            for row in range(rows):
                tokens = sequences[row] if real is None else sequences[row][real[row].to(inputs.device)]
                self._add(name, tokens)

        return hook

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """One call of the experts: hidden states [t, hidden] and experts of each token [t, k]."""
        assert self._layer is not None
        hidden, taken = args[0].detach(), args[1]
        sequences, places = self._states.hidden[self._number].shape[:2]
        of = torch.arange(sequences, device=hidden.device).repeat_interleave(places)
        real = self._states.real(self._number)
        for group in self._routed:
            assert group.expert is not None
            mine = (taken == group.expert).any(-1)
            if real is not None:
                mine = mine & real.reshape(-1).to(mine.device)
            rows = mine.nonzero().flatten()
            if not len(rows):
                continue
            inputs = between(self._layer, self._layer.experts[group.expert], hidden[rows])
            for sequence in range(sequences):
                self._add(group.output, inputs[of[rows] == sequence])

    def tokens(self, group: Group) -> int:
        """How many tokens the units of a group were seen on."""
        return self._running[group.output].tokens if group.output in self._running else 0

    def statistics(self, group: Group) -> UnitStatistics:
        """What is known of a group over everything that ran: zeros where it saw no token. Raises
        ActivationsNotFinite."""
        if group.output not in self._running:
            return _Running(group.count * group.width, group.count, torch.device("cpu")).statistics()
        found = self._running[group.output].statistics()
        if not bool(torch.isfinite(found.variances).all()):
            raise ActivationsNotFinite(
                f"an input of {group.output} is not finite on the calibration data: the model overflows "
                "before it is pruned; check that its checkpoint is sound and of a type that holds its values"
            )
        return found
