"""Sub-models of the dense model, without some of its units, and what they lose.

A unit is left out by zeros in the columns of the weight that reads it; all else stays, so that a sub-model
costs one forward pass, in the memory of one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compression.anatomy.structures import Group
from compression.checkpoint import Store
from compression.divergence import Judge
from compression.loading.weights import WeightReader
from compression.surgery import cuts_of, masked

STEP = "submodel-losses"
# How many losses may be measured anew after a kill.
BETWEEN_SAVES = 16

Kept = Mapping[str, Tensor]
"""By the name of a group, the units int64 that stay."""


class Submodels:
    """Losses of sub-models; `judge` gives whoever runs the model over so many calibration sequences. What was
    measured is kept as step `submodel-losses`."""

    def __init__(
        self, reader: WeightReader, groups: Sequence[Group], judge: Callable[[int], Judge], store: Store
    ) -> None:
        self._reader = reader
        self._groups = {group.name: group for group in groups}
        self._judge = judge
        self._store = store
        self._unsaved = 0
        known = store.data(STEP)["losses"] if store.has(STEP) else {}
        # JSON knows no infinity.
        self._losses = {key: math.inf if loss is None else float(loss) for key, loss in known.items()}

    def loss(self, kept: Kept, sequences: int) -> float:
        """Mean loss over the first `sequences` calibration sequences of the model that keeps only these units
        of these groups; groups that are not named stay whole. Infinite where it overflows."""
        less = {name: units for name, units in kept.items() if len(units) < self._groups[name].count}
        key = _key(less, sequences)
        if key not in self._losses:
            found = self._judge(sequences).loss(Masked(self._reader, self._groups, less))
            self._losses[key] = found if math.isfinite(found) else math.inf
            self._unsaved += 1
            if self._unsaved == BETWEEN_SAVES:
                self._save()
        return self._losses[key]

    def _save(self) -> None:
        losses = {key: loss if math.isfinite(loss) else None for key, loss in self._losses.items()}
        self._store.save(STEP, None, {"losses": losses})
        self._unsaved = 0


class Masked(Mapping[int, Mapping[str, Tensor]]):
    """By layer, the weights of a sub-model that differ from the dense model's, made when they are asked for:
    those that read units, with zeros in the columns of what is left out."""

    def __init__(self, reader: WeightReader, groups: Mapping[str, Group], kept: Kept) -> None:
        self._reader = reader
        self._layers: dict[int, list[tuple[Group, Tensor]]] = {}
        for name, units in kept.items():
            group = groups[name]
            self._layers.setdefault(group.layer, []).append((group, units))

    def __getitem__(self, layer: int) -> Mapping[str, Tensor]:
        changed = {}
        for group, units in self._layers[layer]:
            cuts = cuts_of([group], {group.name: units})
            changed[group.output] = masked(self._reader.tensor(group.output), cuts[group.output])
        return changed

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _key(kept: Kept, sequences: int) -> str:
    """The same for the same sub-model and data: sha256, hexadecimal."""
    digest = hashlib.sha256(str(sequences).encode())
    for name in sorted(kept):
        digest.update(f"|{name}:".encode())
        digest.update(kept[name].to(torch.int64).sort().values.numpy().tobytes())
    return digest.hexdigest()
