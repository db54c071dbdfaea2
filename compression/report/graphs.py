"""The section of the HTML page on a network given as a graph. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.report.formats import number_text, percent, seconds_text
from compression.report.markup import Cell, folded, number, table

Json = Mapping[str, Any]


def _slow(found: Json | None) -> str:
    """Layers that did not get faster by as much as they got smaller; empty where the result is as fast as
    that."""
    if found is None:
        return ""
    rows: list[list[Cell | str]] = [
        [
            Cell(one["dense"], "wide"),
            Cell(one["pruned"], "wide"),
            number(f"{one['layers']:,}"),
            number(seconds_text(one["dense_seconds"])),
            number(seconds_text(one["pruned_seconds"])),
            number(percent(one["pruned_macs"] / max(one["dense_macs"], 1))),
            str(one["reason"]),
        ]
        for one in found["shapes"]
    ]
    heads: list[Cell | str] = [
        "layers", "became (the slowest)", number("layers"), number("dense"), number("pruned"),
        number("multiply-accumulates left"), "because",
    ]  # fmt: skip
    beside = " and ".join(seconds_text(one) for one in found["beside"])
    told = (
        "<p>The result is slower than its multiply-accumulates promise. Timed alone, its "
        f"{found['timed']:,} layers take {seconds_text(found['pruned_seconds'])}, those of the dense graph "
        f"{seconds_text(found['dense_seconds'])}; what lies beside them takes {beside} (dense and "
        "pruned).</p>"
    )
    return told + (table(heads, rows) if rows else "")


def weights(report: Json) -> str:
    """Of a graph that lost single weights: which matrices could lose none, and why; empty for other
    models."""
    found = report["graph"]
    if found is None:
        return ""
    rows = [
        [Cell(one["tensor"], "code wide"), number(f"{one['weights']:,}"), one["reason"]]
        for one in found["whole"]
    ]
    told = f"<p>{found['nodes']:,} nodes of operator set {found['opset']}. The masks are in the artifact.</p>"
    listed = table(["tensor", number("weights"), "it stays because"], rows)
    return told + folded(f"Matrices that stay whole ({len(rows):,})", listed)


def graph(report: Json) -> str:
    """What could be cut in a graph, what it kept, and what stayed whole; empty for other models."""
    found = report["graph"]
    if found is None:
        return ""
    told = (
        f"<p>{found['nodes']:,} nodes of operator set {found['opset']}. Of {found['units']:,} removable "
        f"channels in {found['group_count']:,} groups {found['units_kept']:,} stay; "
        f"{percent(found['sparsity'])} of all parameters are gone. With zeros in place of the channels the "
        f"outputs are the same up to {number_text(found['exactness'])} of the largest.</p>"
    )
    groups = table(
        ["made by", number("dense"), number("kept"), number("tensors")],
        [
            [
                Cell(one["name"] + (" (heads)" if one["heads"] else ""), "code wide"),
                number(f"{one['dense']:,}"),
                number(f"{one['kept']:,}"),
                number(f"{one['tensors']:,}"),
            ]
            for one in found["groups"]
        ],
    )
    uncut = table(
        ["tensor", number("axis"), number("channels"), "they stay because"],
        [
            [
                Cell(one["tensor"], "code wide"),
                number(str(one["axis"])),
                number(f"{one['channels']:,}"),
                one["reason"],
            ]
            for one in found["uncut"]
        ],
    )
    return (
        told
        + _slow(found["slow"])
        + folded(f"Groups of channels that go as one ({found['group_count']:,})", groups)
        + folded(f"Channels that could not be removed ({found['uncut_count']:,} tensors)", uncut)
        + _fits(found["fits"])
    )


def _fits(fits: Json | None) -> str:
    """What the update did to the weights that stay."""
    if fits is None:
        return ""
    fitted = table(
        ["operator", "how"], [[Cell(one["operator"], "code wide"), one["how"]] for one in fits["fitted"]]
    )
    left = table(
        ["operator", "it keeps its weights because"],
        [[Cell(one["operator"], "code wide"), one["reason"]] for one in fits["left"]],
    )
    found = folded(f"Operators that the update {fits['update']} changed ({fits['fitted_count']:,})", fitted)
    if fits["left_count"]:
        found += folded(
            f"Operators that read something else and were not changed ({fits['left_count']:,})", left
        )
    return found
