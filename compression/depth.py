"""Dropping whole layers: which run of consecutive layers changes the hidden states least."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.inspection import Site
from compression.checkpoint import Hook
from compression.criteria import layer_criteria
from compression.granularity.layer import best_start, candidate_starts, kept_layers
from compression.loading.streamed import States, StreamedModel
from compression.pruning import Listener
from compression.statistics import sample_positions

# Tokens at which hidden states are compared, spread evenly over the calibration data. Not only the last
# token of
# each sequence, as in the paper: over all tokens the distances order the runs as the loss after dropping
# does,
# over last tokens alone they do so less (and an encoder's last token is its separator).
BOUNDARY_TOKENS = 2048


@dataclass(frozen=True)
class LayerChoice:
    """The run of layers that goes: `distances[k]` belongs to the run that starts at `starts[k]`."""

    start: int
    removed: int
    kept: tuple[int, ...]
    starts: tuple[int, ...]
    distances: tuple[float, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return {
            "start": self.start,
            "removed": self.removed,
            "kept": list(self.kept),
            "starts": list(self.starts),
            "distances": list(self.distances),
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerChoice:
        """Reads what `to_json` gave."""
        return cls(
            start=data["start"],
            removed=data["removed"],
            kept=tuple(data["kept"]),
            starts=tuple(data["starts"]),
            distances=tuple(data["distances"]),
            tokens=data["tokens"],
        )


def boundary_states(
    model: StreamedModel,
    batches: Sequence[dict[str, Tensor]],
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


def choose_layers(
    boundaries: Sequence[Tensor], criterion: str, remove: int, keep_first: int, keep_last: int
) -> LayerChoice:
    """The run of `remove` layers with the smallest distance between what enters and what leaves it.

    Equal distances: the first run. Raises TargetUnreachable when no run spares the layers that must stay.
    """
    layers = len(boundaries) - 1
    starts = candidate_starts(layers, remove, keep_first, keep_last)
    measure = layer_criteria[criterion].distance
    distances = [measure(boundaries[start], boundaries[start + remove]) for start in starts]
    start = best_start(distances, starts)
    return LayerChoice(
        start=start,
        removed=remove,
        kept=tuple(kept_layers(layers, start, remove)),
        starts=tuple(starts),
        distances=tuple(distances),
        tokens=int(boundaries[0].shape[0]),
    )


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
