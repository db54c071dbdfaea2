"""What calibration measures of whole experts, while their block runs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.criteria.base import ActivationsNotFinite
from compression.expert_statistics import between
from compression.expert_use import ExpertUse
from compression.loading.experts import ExpertLayer
from compression.loading.streamed import Block, States
from compression.statistics import Positions

# Elements of the outputs of all experts that are held at a time.
CHUNK_ELEMENTS = 1 << 24


class ExpertUseCollector:
    """A hook on the experts of a block, for as long as it is entered (`with`). `router` is the stored name of
    the weight that sends tokens to them.

    `batch(number)` must be called before each batch is run.
    """

    def __init__(
        self, block: Block, router: str, states: States, positions: Positions, needs: frozenset[str]
    ) -> None:
        assert block.experts is not None, "only blocks with experts are looked at"
        self._layer: ExpertLayer = block.experts
        self._router: Any = block.linears()[router]
        self._name = router
        self._states = states
        self._positions = positions
        self._normed = "expert.norms" in needs
        self._number = 0
        self._tokens = 0
        self._sample: list[Tensor] = []
        count = len(self._layer.experts)
        device = self._layer.parameter(self._layer.experts[0].down).device
        self._together = torch.zeros(count, count, dtype=torch.float64, device=device)
        self._weights = torch.zeros(count, dtype=torch.float64, device=device)
        self._norms = torch.zeros(count, dtype=torch.float64, device=device)
        self._handle: Any = None

    def __enter__(self) -> ExpertUseCollector:
        self._handle = self._layer.module.register_forward_pre_hook(self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def batch(self, number: int) -> None:
        """Say which batch runs next."""
        self._number = number

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """One call of the experts: hidden states [t, hidden], experts of each token [t, k] and weights."""
        hidden, taken, weights = (item.detach() for item in args[:3])
        self._sample.append(hidden[self._positions[self._number].to(hidden.device)])
        real = self._states.real(self._number)
        if real is not None:
            keep = real.reshape(-1).to(hidden.device)
            hidden, taken, weights = hidden[keep], taken[keep], weights[keep]
        spread = torch.zeros(len(hidden), len(self._weights), dtype=torch.float64, device=hidden.device)
        spread.scatter_(1, taken, weights.to(torch.float64))
        sent = torch.zeros_like(spread).scatter_(1, taken, 1.0)
        self._tokens += len(hidden)
        self._together += sent.T @ sent
        self._weights += spread.sum(0)
        if not self._normed:
            return
        for number in range(len(self._weights)):
            rows = sent[:, number].nonzero().flatten()
            if len(rows):
                outputs = self._output(number, hidden[rows]).to(torch.float64)
                lengths = torch.linalg.vector_norm(outputs, dim=1)
                self._norms[number] += (lengths * spread[rows, number]).sum()

    def _output(self, number: int, rows: Tensor) -> Tensor:
        expert = self._layer.experts[number]
        return functional.linear(
            between(self._layer, expert, rows), self._layer.parameter(expert.down)
        )  # fmt: skip

    def _products(self, hidden: Tensor) -> Tensor:
        count = len(self._weights)
        step = max(1, CHUNK_ELEMENTS // (count * hidden.shape[1]))
        found = []
        for start in range(0, len(hidden), step):
            rows = hidden[start : start + step]
            outputs = torch.stack([self._output(number, rows) for number in range(count)], 1)
            outputs = outputs.to(torch.float32)
            found.append(torch.bmm(outputs, outputs.transpose(1, 2)).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def use(self) -> ExpertUse:
        """What is known over everything that ran. Raises ActivationsNotFinite."""
        hidden = torch.cat(self._sample)
        weight = self._router.weight
        found = ExpertUse(
            tokens=self._tokens,
            counts=self._together.diagonal().to("cpu", torch.int64),
            together=self._together.to("cpu", torch.int64),
            weights=self._weights.cpu(),
            norms=self._norms.cpu(),
            logits=functional.linear(hidden, weight).to("cpu", torch.float32),
            products=self._products(hidden),
            top=int(self._router.top_k),
            # Mixtral's router has no such choice: it always divides.
            normalised=bool(getattr(self._router, "norm_topk_prob", True)),
        )
        for values in (found.weights, found.norms, found.products):
            if not bool(torch.isfinite(values).all()):
                raise ActivationsNotFinite(
                    f"what the experts of {self._name} give is not finite on the calibration data: the "
                    "model overflows before it is pruned; check that its checkpoint is sound and of a type "
                    "that holds its values"
                )
        return found
