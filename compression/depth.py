"""Dropping whole layers: which of them the model misses least."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.inspection import Site
from compression.checkpoint import Hook
from compression.criteria.base import ActivationsNotFinite
from compression.criteria.dropping import LayerCriterion
from compression.divergence import Changes, Judge
from compression.granularity.layer import best_start, candidate_starts, kept_layers
from compression.loading.streamed import States, StreamedModel
from compression.merging import Coefficients, merged_tensors
from compression.pruning import Listener
from compression.statistics import sample_positions
from compression.updates.dropping import LayerUpdate
from compression.updates.layers import layer_updates

# Tokens at which hidden states are compared, spread evenly over the calibration data. Not only the last
# token of
# each sequence, as in the paper: over all tokens the distances order the runs as the loss after dropping
# does,
# over last tokens alone they do so less (and an encoder's last token is its separator).
BOUNDARY_TOKENS = 2048

Batch = dict[str, Tensor]
Listing = list[tuple[list[int], float]]


@dataclass(frozen=True)
class LayerChoice:
    """The layers that go: `gone` in the order in which they were chosen, `kept` ascending.

    `tried` are the candidates, each with its cost: runs, single layers, or for "greedy" and "collapse" what
    each round took away. `tokens` is how many tokens hidden states were compared at (0: none were). `update`
    is what happens to the layers that stay, and `merged` what they become by it.
    """

    criterion: str
    selection: str
    gone: tuple[int, ...]
    kept: tuple[int, ...]
    tried: tuple[tuple[tuple[int, ...], float], ...]
    tokens: int
    update: str = "none"
    merged: Coefficients = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return {
            "criterion": self.criterion,
            "selection": self.selection,
            "gone": list(self.gone),
            "kept": list(self.kept),
            "tried": [{"layers": list(layers), "cost": cost} for layers, cost in self.tried],
            "tokens": self.tokens,
            "update": self.update,
            "merged": [
                {
                    "layer": layer,
                    "of": [{"layer": other, "times": times} for other, times in found.items()],
                }
                for layer, found in self.merged.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerChoice:
        """Reads what `to_json` gave."""
        return cls(
            criterion=data["criterion"],
            selection=data["selection"],
            gone=tuple(data["gone"]),
            kept=tuple(data["kept"]),
            tried=tuple((tuple(one["layers"]), one["cost"]) for one in data["tried"]),
            tokens=data["tokens"],
            update=data["update"],
            merged={
                one["layer"]: {other["layer"]: other["times"] for other in one["of"]}
                for one in data["merged"]
            },
        )


class DepthEvidence:
    """What criteria of layers may know (a `LayerEvidence`), measured when it is first asked for.

    `update` says what becomes of layers that stay; those of `rounds` went before, round after round.
    """

    def __init__(
        self,
        model: StreamedModel,
        batches: Sequence[Batch],
        sequences: int,
        listener: Listener,
        hook: Hook | None = None,
        update: LayerUpdate | None = None,
    ) -> None:
        self.update = update or layer_updates["none"]
        self.rounds: list[list[int]] = []
        self._model = model
        self._batches = batches
        self._sequences = sequences
        self._listener = listener
        self._hook = hook
        self._states: list[Tensor] | None = None
        self._judge: Judge | None = None

    @property
    def tokens(self) -> int:
        """How many tokens hidden states were compared at."""
        return 0 if self._states is None else int(self._states[0].shape[0])

    def state(self, boundary: int) -> Tensor:
        """Hidden states before a layer."""
        if self._states is None:
            self._states = boundary_states(self._model, self._batches, self._listener, hook=self._hook)
            for layer, states in enumerate(self._states):
                if not bool(torch.isfinite(states).all()):
                    raise ActivationsNotFinite(
                        f"the hidden states before layer {layer} are not finite on the calibration data: "
                        "the model overflows before it is pruned; check that its checkpoint is sound and of "
                        "a type that holds its values"
                    )
        return self._states[boundary]

    def loss(self, gone: Sequence[int]) -> float:
        """Mean loss without these layers."""
        return self._judged().loss(self._without(gone))

    def divergence(self, gone: Sequence[int]) -> float:
        """Mean divergence without these layers."""
        return self._judged().divergence(self._without(gone))

    def similarity(self, gone: Sequence[int]) -> float:
        """Mean cosine of the last hidden states without these layers to the dense model's."""
        return self._judged().similarity(self._without(gone))

    def coefficients(self, gone: Sequence[int]) -> Coefficients:
        """What the layers that stay become when those of `gone` that did not go before go together."""
        before = {layer for layers in self.rounds for layer in layers}
        last = [layer for layer in gone if layer not in before]
        return self.update.coefficients(self._model.layers, [*self.rounds, *([last] if last else [])])

    def _without(self, gone: Sequence[int]) -> Changes:
        changes: dict[int, dict[str, Tensor] | None] = dict.fromkeys(gone)
        for layer, found in self.coefficients(gone).items():
            changes[layer] = merged_tensors(self._model, layer, found)
        return changes

    def _judged(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self._model, self._batches, self._sequences)
        if self._hook is not None:
            self._hook("mid_block")
        return self._judge


@dataclass(frozen=True)
class DepthTask:
    """So many layers of a model are to go, but none of the first `keep_first` and the last `keep_last`; of
    "collapse", `at_once` in a round."""

    layers: int
    remove: int
    keep_first: int = 0
    keep_last: int = 0
    at_once: int = 1
    rounds: Listing = field(default_factory=list)
    """What an earlier attempt at "greedy" or "collapse" has taken away."""
    after_round: Callable[[Listing], None] = lambda rounds: None

    @property
    def free(self) -> range:
        """The layers that may go. Raises TargetUnreachable if they are too few."""
        candidate_starts(self.layers, self.remove, self.keep_first, self.keep_last)
        return range(self.keep_first, self.layers - self.keep_last)


def choose_layers(
    task: DepthTask, criterion: LayerCriterion, selection: str, evidence: DepthEvidence, listener: Listener
) -> LayerChoice:
    """The layers that cost least by the criterion; of equals, the first.

    "run": consecutive ones, each run judged as a whole; "separate": each judged alone; "greedy": one by one,
    each judged with those that went before; "collapse": the same run by run, where what one round merges the
    next one finds merged. Raises TargetUnreachable when too few may go, ActivationsNotFinite when the model
    overflows.
    """

    def cost(layers: Sequence[int]) -> float:
        found = criterion.cost(evidence, layers)
        # What overflows without these layers is dearer than anything else.
        return found if math.isfinite(found) else math.inf

    if selection == "collapse":
        gone, tried = _collapse(task, cost, listener, evidence.rounds)
    else:
        choose = {"run": _run, "separate": _separate, "greedy": _greedy}[selection]
        gone, tried = choose(task, cost, listener)
    if all(math.isinf(one) for _, one in tried):
        raise ActivationsNotFinite(
            f"the {criterion.name} without layers is not finite on the calibration data, whichever go: the "
            "model overflows before it is pruned; check that its checkpoint is sound and of a type that "
            "holds its values"
        )
    return LayerChoice(
        criterion=criterion.name,
        selection=selection,
        gone=tuple(gone),
        kept=tuple(layer for layer in range(task.layers) if layer not in gone),
        tried=tuple((tuple(layers), cost) for layers, cost in tried),
        tokens=evidence.tokens,
        update=evidence.update.name,
        merged=evidence.coefficients(sorted(gone)),
    )


Cost = Callable[[Sequence[int]], float]


def _run(task: DepthTask, cost: Cost, listener: Listener) -> tuple[list[int], Listing]:
    starts = candidate_starts(task.layers, task.remove, task.keep_first, task.keep_last)
    tried = _costs([list(range(start, start + task.remove)) for start in starts], cost, listener)
    start = best_start([found for _, found in tried], starts)
    return list(range(start, start + task.remove)), tried


def _separate(task: DepthTask, cost: Cost, listener: Listener) -> tuple[list[int], Listing]:
    tried = _costs([[layer] for layer in task.free], cost, listener)
    order = sorted(tried, key=lambda one: (one[1], one[0]))
    return [layers[0] for layers, _ in order[: task.remove]], tried


def _greedy(task: DepthTask, cost: Cost, listener: Listener) -> tuple[list[int], Listing]:
    rounds = list(task.rounds)
    gone = [layers[0] for layers, _ in rounds]
    while len(gone) < task.remove:
        left = [layer for layer in task.free if layer not in gone]
        costs = [cost(sorted([*gone, layer])) for layer in left]
        best = min(range(len(left)), key=lambda number: (costs[number], left[number]))
        gone.append(left[best])
        rounds.append(([left[best]], costs[best]))
        task.after_round(rounds)
        listener.progress(len(gone), task.remove)
    return gone, rounds


def _collapse(
    task: DepthTask, cost: Cost, listener: Listener, settled: list[list[int]]
) -> tuple[list[int], Listing]:
    """`settled` is told what goes, round by round."""
    rounds = list(task.rounds)
    settled += [list(layers) for layers, _ in rounds]
    gone = [layer for layers, _ in rounds for layer in layers]
    while len(gone) < task.remove:
        left = [layer for layer in task.free if layer not in gone]
        size = min(task.at_once, task.remove - len(gone))
        runs = [left[at : at + size] for at in range(len(left) - size + 1)]
        costs = [cost(sorted([*gone, *run])) for run in runs]
        best = min(range(len(runs)), key=lambda number: (costs[number], runs[number]))
        gone += runs[best]
        settled.append(runs[best])
        rounds.append((runs[best], costs[best]))
        task.after_round(rounds)
        listener.progress(len(gone), task.remove)
    return gone, rounds


def _costs(candidates: Sequence[list[int]], cost: Cost, listener: Listener) -> Listing:
    tried = []
    for number, layers in enumerate(candidates):
        tried.append((layers, cost(layers)))
        listener.progress(number + 1, len(candidates))
    return tried


def boundary_states(
    model: StreamedModel,
    batches: Sequence[Batch],
    listener: Listener,
    limit: int = BOUNDARY_TOKENS,
    hook: Hook | None = None,
) -> list[Tensor]:
    """Hidden states of a sample of tokens before each layer and after the last: layers + 1 times [tokens,
    hidden].

    The tokens are the same at every boundary, spread evenly over all real tokens; padding is never taken.
    """
    states = model.start(batches)
    positions = sample_positions(states, limit)
    boundaries = [_sampled(states, positions)]
    for index in range(model.layers):
        model.run_block(model.load_block(index), states)
        boundaries.append(_sampled(states, positions))
        if hook is not None:
            hook("mid_block")
        listener.progress(index + 1, model.layers)
    return boundaries


def _sampled(states: States, positions: Sequence[Tensor]) -> Tensor:
    parts = []
    for hidden, places in zip(states.hidden, positions, strict=True):
        flat = hidden.reshape(-1, hidden.shape[-1])
        parts.append(flat[places.to(flat.device)].to(torch.float32))
    return torch.cat(parts)


def baseline_layers(
    name: str, model: StreamedModel, sites: Sequence[Site], remove: int, ends: tuple[int, int], seed: int
) -> tuple[int, ...]:
    """Layers that stay when a baseline chooses the run: "random" by the seed, "magnitude" by the weights.

    "magnitude": the run whose weights have the smallest sum of squares. Same limits as `choose_layers`.
    """
    starts = candidate_starts(model.layers, remove, *ends)
    if name == "random":
        start = random.Random(seed).choice(list(starts))
    else:
        squares = [0.0] * model.layers
        for site in sites:
            weight = model.reader.tensor(site.name).to(torch.float32)
            squares[site.layer] += float(weight.square().sum(dtype=torch.float64))
        start = best_start([sum(squares[at : at + remove]) for at in starts], starts)
    return tuple(kept_layers(model.layers, start, remove))
