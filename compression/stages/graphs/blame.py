"""Which layers did not get faster by as much as they got smaller, where a result is slower than its
multiply-accumulates promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compression.anatomy.graph import BLOCK
from compression.graphs.layer_shape import LayerShape
from compression.graphs.layer_shapes import LayerShapes

BEHIND = 1.3
"""Times the ratio of multiply-accumulates, from which the ratio of latency is looked into."""
SLOW = 1.1
"""The same for the layers of one shape, from which they are named."""
WORTH = 0.01
"""Of the time of all layers that were cut: what takes less more than it should is not named."""
LISTED = 20


def behind(latency: float | None, macs: float) -> bool:
    """Whether a measured ratio of latency is so much above that of multiply-accumulates that layers are
    timed."""
    return latency is not None and latency > BEHIND * macs


@dataclass
class _Kind:
    """Layers of one shape in the dense graph."""

    shape: LayerShape
    cut: list[LayerShape]


def slow_layers(
    dense: LayerShapes,
    pruned: LayerShapes,
    table: Mapping[str, float],
    measured: tuple[float, float],
) -> dict[str, Any]:
    """The account of a report: for each shape of the dense graph whose layers take more than their share of
    multiply-accumulates, how many there are, seconds and multiply-accumulates before and after (of all of
    them), and why; those first that take most more, if that is worth naming. `measured` are the seconds of
    both graphs, of which
    `beside` is what their layers do not explain. Layers whose time is not known are left out."""
    kinds: dict[LayerShape, _Kind] = {}
    for name, shape in dense.items():
        if shape.key in table and pruned[name].key in table:
            kinds.setdefault(shape, _Kind(shape, [])).cut.append(pruned[name])
    before = sum(table[one.shape.key] * len(one.cut) for one in kinds.values())
    after = sum(table[shape.key] for one in kinds.values() for shape in one.cut)
    found = [row for one in kinds.values() if (row := _row(one, table)) is not None]
    rows = [row for row in found if _more(row) >= WORTH * after]
    rows.sort(key=lambda row: (-_more(row), str(row["dense"])))
    return {
        "timed": sum(len(one.cut) for one in kinds.values()),
        "dense_seconds": before,
        "pruned_seconds": after,
        "beside": [max(0.0, measured[0] - before), max(0.0, measured[1] - after)],
        "shapes": rows[:LISTED],
    }


def _row(kind: _Kind, table: Mapping[str, float]) -> dict[str, Any] | None:
    count = len(kind.cut)
    macs = kind.shape.macs * count, sum(shape.macs for shape in kind.cut)
    seconds = table[kind.shape.key] * count, sum(table[shape.key] for shape in kind.cut)
    if seconds[1] / seconds[0] <= SLOW * macs[1] / max(macs[0], 1):
        return None
    slowest = max(kind.cut, key=lambda shape: table[shape.key])
    return {
        "dense": kind.shape.text,
        "pruned": slowest.text,
        "layers": count,
        "dense_seconds": seconds[0],
        "pruned_seconds": seconds[1],
        "dense_macs": macs[0],
        "pruned_macs": macs[1],
        "reason": _reason(kind.shape, kind.cut),
    }


def _more(row: Mapping[str, Any]) -> float:
    """Seconds above what the share of multiply-accumulates would take."""
    share = row["pruned_macs"] / max(row["dense_macs"], 1)
    return float(row["pruned_seconds"] - share * row["dense_seconds"])


def _reason(whole: LayerShape, cut: Sequence[LayerShape]) -> str:
    """Why layers are slower than their multiply-accumulates promise, as far as their widths tell."""
    if all(one == whole for one in cut):
        return "nothing was cut here"
    odd = [one for one in cut if any(_odd(one, whole))]
    if odd:
        example = next(
            width for one in odd for width, bad in zip(one.channels, _odd(one, whole), strict=True) if bad
        )
        return (
            f"{len(odd)} of {len(cut)} keep channels that are no multiple of {BLOCK}, such as {example}, "
            f"which runtimes compute in blocks: options.channel_multiple {BLOCK}"
        )
    return "too small to be faster: what is left takes the time of reading and starting, not of multiplying"


def _odd(one: LayerShape, whole: LayerShape) -> list[bool]:
    """Of every width in blocks, whether cutting left no multiple of a block."""
    pairs = zip(one.channels, whole.channels, strict=True)
    return [now != before and now % BLOCK != 0 for now, before in pairs]
