"""What calibration measures of the channels of the residual stream: what its norms see and give, in one pass
through the blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.residual import EPSILON, Stream
from compression.criteria.base import ActivationsNotFinite
from compression.loading.streamed import States, StreamedModel
from compression.pruning import Batch

CHUNK_ROWS = 4096


@dataclass
class ChannelStatistics:
    """Of all norms that the stream is read through, over all real calibration tokens. n is what a norm makes
    of a token before it multiplies with its weight w (so that the mean of n_i^2 over channels is 1).

    `products` float64 [D, D] is the mean over norms and tokens of n n^T, None unless it was asked for;
    `energies` float64 [D] the mean of n_i^2, its diagonal. `magnitudes` float64 [D] is the sum over norms of
    the 2-norm over sequences of the mean over a sequence's tokens of |w_i n_i|.
    """

    energies: Tensor
    magnitudes: Tensor
    products: Tensor | None = None


@dataclass
class StreamSums:
    """Sums over norms and tokens; `lengths` are the squares of one norm, summed over sequences."""

    width: int
    device: torch.device
    products_too: bool
    tokens: int = 0
    squares: Tensor = field(init=False)
    magnitudes: Tensor = field(init=False)
    lengths: dict[str, Tensor] = field(init=False)
    products: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.squares = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        self.magnitudes = torch.zeros_like(self.squares)
        self.lengths = {}
        size = (self.width, self.width)
        self.products = self.squares.new_zeros(size) if self.products_too else None

    def add(self, name: str, rows: Tensor, weight: Tensor, epsilon: float) -> None:
        """Add the real tokens [tokens, D] of one sequence as they enter the norm `name`."""
        if not len(rows):
            return
        given = torch.zeros_like(self.squares)
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS].to(torch.float32)
            normed = chunk * torch.rsqrt(chunk.square().mean(1, keepdim=True) + epsilon)
            self.squares += normed.to(torch.float64).square().sum(0)
            given += (normed * weight).abs().to(torch.float64).sum(0)
            if self.products is not None:
                self.products += (normed.T @ normed).to(torch.float64)
        self.tokens += len(rows)
        known = self.lengths.setdefault(name, torch.zeros_like(self.squares))
        known += (given / len(rows)).square()

    def close(self, name: str) -> None:
        """All sequences have passed the norm. Raises ActivationsNotFinite."""
        if name in self.lengths:
            self.magnitudes += self.lengths.pop(name).sqrt()
        if not bool(torch.isfinite(self.squares).all() & torch.isfinite(self.magnitudes).all()):
            raise ActivationsNotFinite(
                f"the input of {name} is not finite on the calibration data: the model overflows before it "
                "is pruned; check that its checkpoint is sound and of a type that holds its values"
            )

    def statistics(self) -> ChannelStatistics:
        """What is known now."""
        count = max(1, self.tokens)
        products = None if self.products is None else (self.products / count).cpu()
        return ChannelStatistics((self.squares / count).cpu(), self.magnitudes.cpu(), products)


def measure_channels(
    model: StreamedModel,
    stream: Stream,
    calibration: Sequence[Batch],
    progress: Callable[[int, int], None],
    hook: Callable[[str], None] | None = None,
    *,
    products: bool = False,
) -> ChannelStatistics:
    """Run the calibration batches through the model, one block in memory, and look at every norm that the
    stream is read through, the last one too; `progress` hears of every batch of every block. Raises
    ActivationsNotFinite."""
    epsilon = float(getattr(model.config, EPSILON))
    sums = StreamSums(stream.hidden, model.device, products)
    states = model.start(calibration)
    for index in range(model.layers):
        block = model.load_block(index)
        modules = block.linears()
        norms = stream.read_norms(index)
        watch = _Watch(sums, states, epsilon, stream.offset)
        handles = [
            modules[name].register_forward_pre_hook(watch.hook(name)) for name in norms
        ]  # fmt: skip
        for number in range(len(states)):
            watch.number = number
            states.hidden[number] = model.run_batch(block, states, number)
            progress(index * len(states) + number + 1, model.layers * len(states))
        for handle in handles:
            handle.remove()
        for name in norms:
            sums.close(name)
        if hook is not None:
            hook("mid_block")
    weight = model.reader.tensor(stream.final).to(model.device, torch.float32) + stream.offset
    for number in range(len(states)):
        for rows in real_rows(states, number, states.hidden[number]):
            sums.add(stream.final, rows, weight, epsilon)
    sums.close(stream.final)
    return sums.statistics()


class _Watch:
    """Hooks of the norms of one block; `number` is the batch that runs."""

    def __init__(self, sums: StreamSums, states: States, epsilon: float, offset: float) -> None:
        self._sums, self._states, self._epsilon, self._offset = sums, states, epsilon, offset
        self.number = 0

    def hook(self, name: str) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...]) -> None:
            weight = module.get_parameter("weight").to(torch.float32) + self._offset
            for rows in real_rows(self._states, self.number, args[0]):
                self._sums.add(name, rows, weight, self._epsilon)

        return seen


def real_rows(states: States, number: int, inputs: Tensor) -> list[Tensor]:
    """The real tokens [tokens, D] of every sequence of a batch, of which these are the inputs [b, s, D]."""
    real = states.real(number)
    if real is None:
        return list(inputs)
    return [row[mask.to(inputs.device)] for row, mask in zip(inputs, real, strict=True)]
