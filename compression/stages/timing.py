"""Inspect: the times of the model's layers on the job's own device, measured where no earlier job of that
device left them; and what they promise for a result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.latency import (
    LatencyTable,
    Timing,
    shape_key,
    timed_dtypes,
    timed_tokens,
)
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.timed import LATENCY, fastest
from compression.evaluation import probe
from compression.evaluation.timing import TimingFailed, measure_table, runtime, times_layers
from compression.stages.job import Loaded, Pruned

STEP = "latency"
PATTERN = "latency-*.json"


def wants_table(loaded: Loaded) -> bool:
    """Whether the job needs times of layers, or leaves them to plans and later jobs: it removes what dense
    kernels are faster without, measures latency anyway, and there is somewhere to leave them."""
    if not times_layers(loaded.inspection):
        return False
    specification = loaded.specification
    if specification.target.kind == LATENCY:
        return True
    granularity = specification.structure.granularity or ""
    timed = granularity == "layer" or HIDDEN not in GRANULARITIES.get(granularity, (HIDDEN,))
    return timed and "latency" in specification.evaluation.measure and loaded.request.cache is not None


def prepare(loaded: Loaded) -> None:
    """See that there is a table for every dtype that the job computes in. Of a job that aims at a latency
    they are kept as step `latency`, so that it decides the same if it is taken up again. Raises TimingFailed
    for such a job; another one goes on without."""
    if not wants_table(loaded) or loaded.store.has(STEP):
        return
    aims = loaded.specification.target.kind == LATENCY
    tables: dict[str, LatencyTable] = {}
    for dtype in dict.fromkeys(timed_dtypes(loaded.specification, loaded.inspection)):
        try:
            tables[dtype] = _left(loaded, dtype) or _measured(loaded, dtype)
        except TimingFailed as error:
            if aims:
                raise
            loaded.observer.log(f"no latency will be predicted: {error}")
    if aims:
        loaded.store.save(STEP, None, _pair(loaded, tables).to_json())


def timing_of(loaded: Loaded) -> Timing | None:
    """The job's tables; None where it has none."""
    if loaded.store.has(STEP):
        return Timing.from_json(loaded.store.data(STEP))
    if not wants_table(loaded):
        return None
    found = {dtype: _left(loaded, dtype) for dtype in timed_dtypes(loaded.specification, loaded.inspection)}
    tables = {dtype: table for dtype, table in found.items() if table is not None}
    return _pair(loaded, tables) if len(tables) == len(found) else None


def _pair(loaded: Loaded, tables: dict[str, LatencyTable]) -> Timing:
    dense, result = timed_dtypes(loaded.specification, loaded.inspection)
    return Timing(tables[dense], tables[result])


def _measured(loaded: Loaded, dtype: str) -> LatencyTable:
    loaded.observer.log(f"timing layers of this shape in {dtype}: no earlier job did on this device")
    table = measure_table(
        loaded.admission.config,
        loaded.inspection,
        dtype=dtype,
        work=loaded.work / "scratch",
        device=str(loaded.device),
        threads=loaded.request.threads,
    )
    _leave(loaded, table)
    return table


def _leave(loaded: Loaded, table: LatencyTable) -> None:
    cache = loaded.request.cache
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        text = json.dumps(table.model_dump(mode="json"), sort_keys=True)
        (cache / f"latency-{table.key}.json").write_text(text, encoding="utf-8")


def correct(loaded: Loaded, promised: Mapping[str, Any], latency: Mapping[str, Any]) -> None:
    """Move the seconds of the tables halfway (of their logarithm) to what was just measured of the whole
    models, for plans and later jobs: a minute of measuring knows a device better than the seconds that a
    table took, and one job does not know it for good. The shares of widths stay."""
    timing = timing_of(loaded)
    if timing is None:
        return
    forward = latency["cases"][0]
    for name, table in {"pruned": timing.result, "dense": timing.dense}.items():
        _leave(loaded, table.scaled(math.sqrt(forward[name]["median"] / promised[name])))


def _left(loaded: Loaded, dtype: str) -> LatencyTable | None:
    """The table that an earlier job of the same device, threads and software left in the cache."""
    cache, device = loaded.request.cache, str(loaded.device)
    wanted = (
        shape_key(loaded.inspection),
        probe.device_name(device),
        loaded.request.threads,
        runtime(),
        dtype,
        timed_tokens(loaded.inspection),
    )
    for path in sorted(cache.glob(PATTERN)) if cache is not None else ():
        try:
            table = LatencyTable.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if (
            table.shape, table.device, table.threads, table.runtime, table.dtype, table.tokens
        ) == wanted:  # fmt: skip
            return table
    return None


def reach(loaded: Loaded) -> str:
    """What a latency could be at least, as the end of a message; nothing for other targets."""
    timing = timing_of(loaded)
    if loaded.specification.target.kind != LATENCY or timing is None:
        return ""
    options = loaded.specification.options
    layers = max(1, options.get("keep_first", 0) + options.get("keep_last", 0))
    least = fastest(loaded.specification, loaded.inspection, timing, layers)
    dense = timing.dense_seconds(loaded.inspection)
    return (
        f": on {timing.result.device} the dense model takes {1000 * dense:.4g} ms, the smallest result "
        f"{1000 * least:.4g} ms (a ratio of {least / dense:.4f})"
    )


def predicted(loaded: Loaded, pruned: Pruned) -> dict[str, Any] | None:
    """Seconds that the tables promise for the dense model and the result, and for a target of latency what
    was aimed at; None without tables."""
    timing = timing_of(loaded)
    if timing is None:
        return None
    layers, table = loaded.inspection.layers, timing.result
    if pruned.kept is not None:
        seconds = table.seconds(len(pruned.kept))
    elif pruned.counts and loaded.specification.output.layout == "packaged":
        if any(0 in kept for kept in pruned.counts.values()):
            return None
        seconds = table.varied_seconds(layers, pruned.counts)
    elif pruned.widths is not None:
        widths = {one["kind"]: one["kept"] for one in pruned.widths["structures"]}
        seconds = table.seconds(layers, widths)
    else:
        return None
    dense = timing.dense_seconds(loaded.inspection)
    aims = loaded.specification.target.kind == LATENCY
    aimed = timing.goal(loaded.specification, loaded.inspection) if aims else None
    return {"dense": dense, "pruned": seconds, "ratio": seconds / dense, "aimed": aimed}
