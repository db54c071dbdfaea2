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

STEP = "submodel-losses-"
# How many losses may be measured anew after a kill.
BETWEEN_SAVES = 16

Kept = Mapping[str, Tensor]
"""By the name of a group, the units int64 that stay."""


class Submodels:
    """Losses of sub-models; `judge` gives whoever runs the model over so many calibration sequences. What was
    measured is kept as steps `submodel-losses-0000`..."""

    def __init__(
        self, reader: WeightReader, groups: Sequence[Group], judge: Callable[[int], Judge], store: Store
    ) -> None:
        self._reader = reader
        self._groups = {group.name: group for group in groups}
        self._judge = judge
        self._store = store
        self._losses: dict[bytes, float] = {}
        self._unsaved: dict[bytes, float] = {}
        for name in store.names(STEP):
            known, _ = store.load(name)
            keys = [row.numpy().tobytes() for row in known["keys"]]
            self._losses |= dict(zip(keys, known["losses"].tolist(), strict=True))

    def loss(self, kept: Kept, sequences: int) -> float:
        """Mean loss over the first `sequences` calibration sequences of the model that keeps only these units
        of these groups; groups that are not named stay whole. Infinite where it overflows."""
        less = {name: units for name, units in kept.items() if len(units) < self._groups[name].count}
        key = _key(less, sequences)
        if key not in self._losses:
            found = self._judge(sequences).loss(Masked(self._reader, self._groups, less))
            self._losses[key] = self._unsaved[key] = found if math.isfinite(found) else math.inf
            if len(self._unsaved) == BETWEEN_SAVES:
                self._save()
        return self._losses[key]

    def _save(self) -> None:
        keys = torch.tensor([list(key) for key in self._unsaved], dtype=torch.uint8)
        losses = torch.tensor(list(self._unsaved.values()), dtype=torch.float64)
        name = f"{STEP}{len(self._store.names(STEP)):04d}"
        self._store.save(name, {"keys": keys, "losses": losses}, {"count": len(losses)})
        self._unsaved.clear()


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


def _key(kept: Kept, sequences: int) -> bytes:
    """The same for the same sub-model and data: a sha256."""
    digest = hashlib.sha256(str(sequences).encode())
    for name in sorted(kept):
        digest.update(f"|{name}:".encode())
        digest.update(kept[name].to(torch.int64).sort().values.numpy().tobytes())
    return digest.digest()
