"""What allocations of units may know of the dense model: scores, the turn of every layer, and what cutting
groups does to the predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compression.allocation.units import StructureAllocation, Units, UnitSelection
from compression.anatomy.structures import Group
from compression.checkpoint import Store
from compression.criteria.layers import layer_criteria
from compression.criteria.units import best
from compression.depth import DepthEvidence
from compression.divergence import Judge
from compression.evaluation.types import rows
from compression.loading.streamed import StreamedModel
from compression.pruning import Batch, Listener
from compression.structured import Measured, StructurePruner
from compression.submodels import Submodels
from compression.surgery import cut, cuts_of, expanded

LEVELS = 8


class PrunedEvidence:
    """Evidence (see `UnitEvidence`) of a pruner's groups, measured when it is first asked for.

    `spent` says what so many units of a kind cost in one layer, `steps` the numbers of units that may stay by
    the name of a group.
    `scratch` is a folder of its own for cut layers, emptied at the start.
    """

    def __init__(
        self,
        pruner: StructurePruner,
        open_model: Callable[[], StreamedModel],
        spent: Callable[[str, int], int],
        steps: Mapping[str, Sequence[int]],
        scratch: Path,
        listener: Listener,
        *,
        variants: bool,
    ) -> None:
        self.groups = pruner.all_groups
        self._pruner = pruner
        self._model = open_model()
        self._spent, self._steps = spent, steps
        self._scratch, self._variants = scratch, variants
        shutil.rmtree(scratch, ignore_errors=True)
        self._listener = listener
        self._by_name = {group.name: group for group in self.groups}
        self._scores: dict[str, Tensor] = {}
        self._influence: list[float] = []
        self._judges: dict[int, Judge] = {}
        self._divergences: dict[str, float] = {}
        self._submodels = Submodels(self._model.reader, self.groups, self._judge, pruner.store)

    def spent(self, group: Group, kept: int) -> int:
        """What it costs to keep so many units."""
        return self._spent(group.kind, kept)

    def steps(self, group: Group) -> Sequence[int]:
        """The numbers of units that may stay."""
        return self._steps[group.name]

    def levels(self, group: Group) -> Sequence[int]:
        """At most LEVELS of the steps below all units, and all of them."""
        steps = self.steps(group)
        fewer = min(LEVELS, len(steps) - 1)
        return [*(steps[place * (len(steps) - 1) // fewer] for place in range(fewer)), steps[-1]]

    def progress(self, done: int, total: int) -> None:
        """To whoever listens."""
        self._listener.progress(done, total)

    def scores(self, group: Group) -> Tensor:
        """float64 [units] on the dense model."""
        self._look()
        return self._scores[group.name]

    def losses(self, group: Group) -> Sequence[float]:
        """What the criterion says is lost when the n lowest units go."""
        ordered = self.scores(group).sort().values
        cumulative = getattr(self._pruner.settings.scorer(), "cumulative", False)
        lost: list[float] = (ordered if cumulative else ordered.cumsum(0)).tolist()
        return [0.0, *lost]

    def influence(self) -> Sequence[float]:
        """For each layer, 1 - the mean cosine between what enters and what leaves it."""
        if not self._influence:
            calibration = self._pruner.calibration
            assert calibration is not None
            depth = DepthEvidence(self._model, calibration, 1, self._listener)
            criterion = layer_criteria["block-influence"]
            self._influence = [criterion.cost(depth, (layer,)) for layer in range(self._model.layers)]
        return self._influence

    def divergence(self, keep: Mapping[str, int], sequences: int) -> float:
        """Mean divergence of the model with these groups cut."""
        self._look()
        less = {name: kept for name, kept in keep.items() if kept < self._by_name[name].count}
        name = json.dumps([sequences, sorted(less.items())])
        if name not in self._divergences:
            changes: dict[int, dict[str, Tensor]] = {}
            for group_name, kept in less.items():
                group = self._by_name[group_name]
                changes.setdefault(group.layer, {}).update(self._variant(group, kept))
            self._divergences[name] = self._judge(sequences).divergence(changes)
        return self._divergences[name]

    def loss(self, kept: Units, sequences: int) -> float:
        """Mean loss without the units that are not kept."""
        return self._submodels.loss(kept, sequences)

    @property
    def seed(self) -> int:
        """That of the job."""
        return self._pruner.settings.seed

    def _judge(self, sequences: int) -> Judge:
        calibration: Sequence[Batch] = self._pruner.calibration or []
        count = min(sequences, sum(map(rows, calibration)))
        if count not in self._judges:
            self._judges[count] = Judge(self._model, calibration, count)
        return self._judges[count]

    # -- the dense pass

    def _look(self) -> None:
        if self._scores:
            return
        self._pruner.prepare()
        self._pruner.look(self._seen)

    def _seen(self, model: StreamedModel, group: Group, scores: Tensor, measured: Measured | None) -> None:
        self._scores[group.name] = scores
        if not self._variants:
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        for level in self.levels(group)[:-1]:
            kept = best(scores, level)
            tensors = {"kept": kept}
            if level:
                changed, _ = self._pruner.update_group(model, group, kept, measured)
                tensors |= changed
            save_file({name: value.contiguous() for name, value in tensors.items()}, self._path(group, level))

    def _path(self, group: Group, level: int) -> Path:
        return self._scratch / f"{group.name}-{level:06d}.safetensors"

    def _variant(self, group: Group, level: int) -> dict[str, Tensor]:
        """The tensors of a group cut to a level, in their dense shapes, zero where units went."""
        with safe_open(self._path(group, level), framework="pt", device="cpu") as stream:
            changed = {name: stream.get_tensor(name) for name in stream.keys()}
        kept = changed.pop("kept").to(torch.int64)
        cuts = cuts_of([group], {group.name: kept})
        reader = self._model.reader
        found = {}
        for name, slices in cuts.items():
            dense = reader.tensor(name)
            left = changed.pop(name) if name in changed else cut(dense, slices)
            found[name] = expanded(left, dense.shape, slices)
        return found | changed


def allocation_step(
    store: Store, entry: StructureAllocation, evidence: PrunedEvidence, budget: int
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The numbers of units that an allocation gives, and the units themselves if it chooses them, kept as
    step `allocation`. Raises TargetUnreachable."""
    if not store.has("allocation"):
        if isinstance(entry, UnitSelection):
            units = dict(entry.select(evidence, budget))
            keep = {name: len(kept) for name, kept in units.items()}
            store.save("allocation", units, {"keep": keep})
        else:
            store.save("allocation", None, {"keep": entry.allocate(evidence, budget)})
    units, data = store.load("allocation")
    return {name: int(kept) for name, kept in data["keep"].items()}, units
