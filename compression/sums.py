"""What is summed over the inputs of a weight, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics

CHUNK_ROWS = 4096
# Of sums alone: so few that a chunk stays in the processor's cache and is made in the same place again.
SHORT_ROWS = 256


@dataclass
class Sums:
    """Sums over the tokens of one input; weights that share an input share these.

    `squares` of each input (float32 within SHORT_ROWS tokens, float64 beyond), its `sums`, the float32
    `hessian` of products, the sums of `magnitudes`; `sample` is a list of float32 [tokens, in].
    """

    squares: Tensor
    sums: Tensor | None
    hessian: Tensor | None
    magnitudes: Tensor | None = None
    tokens: int = 0
    sample: list[Tensor] = field(default_factory=list)
    _buffer: Tensor | None = None

    @classmethod
    def zeros(cls, width: int, device: torch.device, needs: frozenset[str]) -> Sums:
        """Nothing summed yet; `needs` ("means", "hessian", "magnitudes") says what is summed besides the
        squares."""
        return cls(
            torch.zeros(width, dtype=torch.float64, device=device),
            torch.zeros(width, dtype=torch.float64, device=device) if "means" in needs else None,
            torch.zeros(width, width, device=device) if "hessian" in needs else None,
            torch.zeros(width, dtype=torch.float64, device=device) if "magnitudes" in needs else None,
        )

    def add(self, rows: Tensor, weights: Tensor | None) -> None:
        """Add tokens [tokens, in]; `weights` float32 [tokens] is what each weighs (None: the same)."""
        self.tokens += rows.shape[0]
        step = SHORT_ROWS if self.hessian is None else CHUNK_ROWS
        for start in range(0, rows.shape[0], step):
            chunk = rows[start : start + step]
            if weights is not None:
                chunk = chunk.to(torch.float32)
                share = weights[start : start + step, None].to(chunk.device)
                self._add(chunk * share, chunk * share.square())
            elif self.sums is None and self.magnitudes is None and self.hessian is None:
                self._add_squares(chunk)
            else:
                chunk = chunk.to(torch.float32)
                self._add(chunk, chunk)

    def _add_squares(self, chunk: Tensor) -> None:
        """Where nothing else is summed: in one buffer, again and again."""
        if self._buffer is None:
            self._buffer = torch.empty(SHORT_ROWS, chunk.shape[1], device=chunk.device)
        copy = self._buffer[: chunk.shape[0]].copy_(chunk)
        self.squares += copy.square_().sum(0)

    def _add(self, chunk: Tensor, weighted: Tensor) -> None:
        """`chunk` carries each token's weight once, `weighted` twice."""
        if self.sums is not None:
            self.sums += weighted.sum(0)
        if self.magnitudes is not None:
            self.magnitudes += weighted.abs().sum(0)
        if self.hessian is not None:
            self.hessian.addmm_(chunk.T, chunk)
        else:
            self.squares += chunk.square().sum(0)

    def statistics(self) -> SiteStatistics:
        """What is known of the input over everything that was added."""
        squares = self.squares if self.hessian is None else self.hessian.diagonal()
        means = None if self.sums is None else (self.sums / max(1, self.tokens)).to(torch.float32)
        sizes = None
        if self.magnitudes is not None:
            sizes = (self.magnitudes / max(1, self.tokens)).to(torch.float32)
        norms = squares.sqrt().to(torch.float32)
        return SiteStatistics(norms, self.tokens, means, self.hessian, magnitudes=sizes)

    def sampled(self) -> Tensor:
        """The sample, float32 [tokens, in]; [0, in] if there is none."""
        if not self.sample:
            self.sample.append(self.squares.new_zeros((0, len(self.squares)), dtype=torch.float32))
        if len(self.sample) > 1:
            self.sample[:] = [torch.cat(self.sample)]
        return self.sample[0]
