"""What calibration measures of the inputs of experts: each sees the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.loading.experts import Expert, ExpertLayer
from compression.sums import Sums

# Tokens of an expert on which reconstruction errors are computed: there are many experts.
SAMPLE_TOKENS = 64


class _Inputs:
    """What is known of the inputs of one expert's gate and up (`first`) and of its down (`second`)."""

    def __init__(self, first: Sums, second: Sums | None) -> None:
        self.first = first
        self.second = second


class ExpertCollector:
    """Sums over the tokens that are routed to each expert of a block.

    An expert's weights see hidden states x (gate and up) and act(x G^T) * (x U^T) (down), of those tokens
    whose k best experts it is among; how much the router weighs it does not count. An expert to which no
    token was routed has the statistics that all tokens of the layer would have given it. `sampled`: keep
    samples of tokens too; `batches` is how many will come.
    """

    def __init__(
        self, layer: ExpertLayer, sites: Sequence[str], needs: frozenset[str], batches: int, *, sampled: bool
    ) -> None:
        self._layer = layer
        self._needs = needs
        self._places = {
            name: (number, name == expert.down)
            for number, expert in enumerate(layer.experts)
            for name in (expert.gate, expert.up, expert.down)
            if name in set(sites)
        }
        self._wanted = sorted({number for number, _ in self._places.values()})
        self._downs = {number for number, down in self._places.values() if down}
        self._per_batch = -(-SAMPLE_TOKENS // max(1, batches)) if sampled else 0
        self._routed: dict[int, _Inputs] = {}
        self._missed: dict[int, _Inputs] = {}
        self._all: Sums | None = None

    @property
    def sites(self) -> list[str]:
        """The sites that are measured here."""
        return list(self._places)

    @property
    def module(self) -> nn.Module:
        """The module whose calls are looked at."""
        return self._layer.module

    def look(self, args: tuple[Any, ...], real: Tensor | None, weights: Tensor | None) -> None:
        """One call of the experts: hidden states [t, hidden] and experts of each token [t, k].

        `real` bool [t] says which tokens are text, `weights` float32 what those weigh.
        """
        hidden, chosen = args[0].detach(), args[1]
        if real is not None:
            keep = real.reshape(-1).to(hidden.device)
            hidden, chosen = hidden[keep], chosen[keep]
        if self._all is None:
            self._all = Sums.zeros(hidden.shape[-1], hidden.device, self._needs)
        if len(self._routed) < len(self._wanted):
            self._add(self._all, hidden, weights)
        for number in self._wanted:
            mine = (chosen == number).any(-1).nonzero().flatten()
            if len(mine):
                self._missed.pop(number, None)
                if number not in self._routed:
                    first = Sums.zeros(hidden.shape[-1], hidden.device, self._needs)
                    self._routed[number] = _Inputs(first, None)
                self._measure(number, self._routed[number], hidden[mine], _of(weights, mine))
            elif number not in self._routed:
                self._miss(number, hidden, weights)

    def _miss(self, number: int, hidden: Tensor, weights: Tensor | None) -> None:
        """All tokens stand in for those of an expert that had none so far."""
        assert self._all is not None
        inputs = self._missed.setdefault(number, _Inputs(self._all, None))
        if number in self._downs:
            self._measure_down(number, inputs, hidden, weights)

    def _measure(self, number: int, inputs: _Inputs, rows: Tensor, weights: Tensor | None) -> None:
        self._add(inputs.first, rows, weights)
        if number in self._downs:
            self._measure_down(number, inputs, rows, weights)

    def _measure_down(self, number: int, inputs: _Inputs, rows: Tensor, weights: Tensor | None) -> None:
        middle = between(self._layer, self._layer.experts[number], rows)
        if inputs.second is None:
            inputs.second = Sums.zeros(middle.shape[-1], middle.device, self._needs)
        self._add(inputs.second, middle, weights)

    def _add(self, sums: Sums, rows: Tensor, weights: Tensor | None) -> None:
        sums.add(rows, weights)
        count = min(self._per_batch, rows.shape[0], SAMPLE_TOKENS - sum(map(len, sums.sample)))
        if count > 0:
            picks = torch.arange(count, device=rows.device) * rows.shape[0] // count
            sums.sample.append(rows[picks].to(torch.float32))

    def sums(self, site: str) -> Sums:
        """What was summed for a site."""
        number, down = self._places[site]
        inputs = self._routed.get(number) or self._missed[number]
        found = inputs.second if down else inputs.first
        assert found is not None
        return found

    def routed(self, site: str) -> int:
        """How many tokens were routed to the expert that a site belongs to."""
        inputs = self._routed.get(self._places[site][0])
        return 0 if inputs is None else inputs.first.tokens


def _of(weights: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(rows.device)[rows]


def between(layer: ExpertLayer, expert: Expert, rows: Tensor) -> Tensor:
    """Inputs [tokens, ffn] of an expert's down weight for hidden states [tokens, hidden]."""
    gate = functional.linear(rows, layer.parameter(expert.gate))
    up = functional.linear(rows, layer.parameter(expert.up))
    result: Tensor = layer.module.act_fn(gate) * up  # type: ignore[operator]
    return result
