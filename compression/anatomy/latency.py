"""How long a model takes, from the measured times of its layers: what a table of them holds, and what follows
for layers of other widths. No torch.

A table belongs to a shape (all sizes that an inspection knows), a dtype, and a device with its threads and
software. Whoever has one can say how long a smaller model will take without running anything; without one
nobody guesses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from compression.anatomy.inspection import Inspection
from compression.anatomy.structures import Structure, Widths
from compression.specification import JobSpecification, quantity

DECODER_TOKENS = 256
ENCODER_TOKENS = 128
"""Tokens of the sequence that is timed, where the model takes as many; of an image all patches."""

Seconds = Annotated[float, Field(gt=0, lt=1e6)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Level = tuple[Annotated[int, Field(ge=1, lt=1 << 31)], Seconds]


def timed_structures(inspection: Inspection) -> list[Structure]:
    """The units whose savings add up, layer by layer: all but channels of the residual stream, which every
    other width is multiplied with."""
    return [one for one in inspection.structures if one.kind != "hidden"]


def timed_tokens(inspection: Inspection) -> int:
    """Tokens of the one sequence that a forward pass is timed with."""
    if inspection.image is not None:
        return inspection.context
    limit = DECODER_TOKENS if inspection.task == "text-generation" else ENCODER_TOKENS
    return min(inspection.context, limit)


def shape_key(inspection: Inspection) -> str:
    """Hex digest of everything that the time of a forward pass depends on in a model: models of one shape
    share a table."""
    names = (
        "architecture", "task", "layers", "hidden", "heads", "key_value_heads", "head_dim", "ffn",
        "vocabulary",
        "context", "image", "tied_embeddings", "has_pooler", "token_macs", "sequence_macs", "layer_macs",
    )  # fmt: skip
    facts: dict[str, Any] = {name: getattr(inspection, name) for name in names}
    facts["sites"] = [[site.layer, site.kind, *site.shape, site.share] for site in inspection.sites]
    facts["structures"] = [[one.kind, one.count] for one in inspection.structures]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class LatencyTable(BaseModel):
    """Median seconds of one forward pass over one sequence of `tokens` tokens (or one image).

    `layer` is one layer as it is, `rest` all that lies outside the layers. `levels` has, for each kind of
    unit, (how many stay, seconds of one layer that keeps so many and is whole otherwise), ascending in both;
    the last are all units. They were measured with `layers` layers, in `rounds` rounds in turns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    shape: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    device: Line
    kind: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda)$")]
    threads: Annotated[int, Field(ge=1, le=4096)]
    runtime: Line
    dtype: Annotated[str, StringConstraints(pattern=r"^(float32|bfloat16|float16)$")]
    tokens: Annotated[int, Field(ge=1, lt=1 << 31)]
    layers: Annotated[int, Field(ge=1, lt=1 << 16)]
    rounds: Annotated[int, Field(ge=1, lt=1 << 16)]
    layer: Seconds
    rest: Annotated[float, Field(ge=0, lt=1e6)]
    levels: dict[Annotated[str, StringConstraints(pattern=r"^(neuron|head|expert)$")], tuple[Level, ...]]

    @model_validator(mode="after")
    def _ascending(self) -> LatencyTable:
        for steps in self.levels.values():
            if not 1 <= len(steps) <= 64 or any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(steps)):
                raise ValueError("levels must ascend")
        return self

    @property
    def key(self) -> str:
        """Hex digest of what the table is of: a later measurement of the same takes its place."""
        facts = [self.shape, self.device, self.kind, self.threads, self.runtime, self.dtype, self.tokens]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def level(self, kind: str, kept: int) -> float:
        """Seconds of one layer that keeps so many units of a kind: linear between measured numbers, and below
        the lowest of them no less than it."""
        steps = self.levels[kind]
        if kept <= steps[0][0]:
            return steps[0][1]
        for (fewer, low), (more, high) in pairwise(steps):
            if kept <= more:
                return low + (high - low) * (kept - fewer) / (more - fewer)
        return steps[-1][1]

    def saved(self, kind: str, kept: int) -> float:
        """Seconds of one layer that go with the other units of a kind."""
        return self.levels[kind][-1][1] - self.level(kind, kept)

    def seconds(self, layers: int, widths: Widths | None = None) -> float:
        """Of a model of so many layers, all with so many units of each kind (None: all)."""
        less = sum(self.saved(kind, kept) for kind, kept in (widths or {}).items())
        return self.rest + layers * max(0.0, self.layer - less)

    def scaled(self, factor: float) -> LatencyTable:
        """The same shares of other seconds."""
        levels = {kind: tuple((n, at * factor) for n, at in steps) for kind, steps in self.levels.items()}
        changed = {"layer": self.layer * factor, "rest": self.rest * factor, "levels": levels}
        return self.model_copy(update=changed)

    def varied_seconds(self, layers: int, counts: Mapping[str, Sequence[int]]) -> float:
        """Of a model whose layers keep numbers of units of their own."""
        less = [
            sum(self.saved(kind, kept[layer]) for kind, kept in counts.items()) for layer in range(layers)
        ]
        return self.rest + sum(max(0.0, self.layer - saved) for saved in less)


@dataclass(frozen=True)
class Timing:
    """The tables of one job: `dense` in the dtype the model came in, `result` in that it is written in (the
    same one, unless the job changes it). `measured_at` is when, as RFC 3339, where that is known."""

    dense: LatencyTable
    result: LatencyTable
    measured_at: str | None = None

    def dense_seconds(self, inspection: Inspection) -> float:
        """Of the dense model."""
        return self.dense.seconds(inspection.layers)

    def goal(self, specification: JobSpecification, inspection: Inspection) -> float:
        """The seconds that a target of latency asks for."""
        kind, amount = quantity("latency", specification.target.value)
        return amount * self.dense_seconds(inspection) if kind == "ratio" else amount

    def to_json(self) -> dict[str, Any]:
        """As JSON data; `from_json` reads it back."""
        return {
            "dense": self.dense.model_dump(mode="json"),
            "result": self.result.model_dump(mode="json"),
            "measured_at": self.measured_at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timing:
        """Reads what `to_json` gave. Raises pydantic.ValidationError."""
        dense, result = (LatencyTable.model_validate(data[name]) for name in ("dense", "result"))
        return cls(dense, result, data["measured_at"])


def never_falling(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The nearest sequence by least squares that never falls (pool adjacent violators): more units never take
    less time, whatever noise says."""
    pools: list[list[float]] = []
    for number, value in enumerate(values):
        pools.append([value, 1.0 if weights is None else weights[number], 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, count = pools.pop()
            before = pools[-1]
            total = before[1] + weight
            pools[-1] = [(before[0] * before[1] + mean * weight) / total, total, before[2] + count]
    return [mean for mean, _, count in pools for _ in range(int(count))]


def compute_dtype_name(stored: str) -> str:
    """The dtype that weights stored in this one are computed in."""
    return "float32" if stored == "float16" else stored


def timed_dtypes(specification: JobSpecification, inspection: Inspection) -> tuple[str, str]:
    """The dtypes that the dense model and the result are computed in."""
    dense = compute_dtype_name(inspection.dtype)
    return dense, compute_dtype_name(specification.output.dtype or inspection.dtype)


def pair_tables(
    specification: JobSpecification, inspection: Inspection, tables: Sequence[tuple[LatencyTable, str | None]]
) -> list[Timing]:
    """What the tables (each with the time it was measured at, newest first) say of a job: one for each
    device, threads and software that has what the job needs, in the order of the tables."""
    if not tables:
        return []
    dtypes = timed_dtypes(specification, inspection)
    shape, tokens = shape_key(inspection), timed_tokens(inspection)
    kind = "cuda" if specification.queue == "gpu" else "cpu"
    found: dict[tuple[str, int, str], dict[str, tuple[LatencyTable, str | None]]] = {}
    for table, at in tables:
        if (table.shape, table.tokens, table.kind) == (shape, tokens, kind):
            place = (table.device, table.threads, table.runtime)
            found.setdefault(place, {}).setdefault(table.dtype, (table, at))
    return [
        Timing(known[dtypes[0]][0], known[dtypes[1]][0], known[dtypes[1]][1])
        for known in found.values()
        if all(dtype in known for dtype in dtypes)
    ]
