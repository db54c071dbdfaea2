"""The section of the HTML page on a network given as a graph. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.report.formats import number_text, percent
from compression.report.markup import Cell, folded, number, table

Json = Mapping[str, Any]


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
        "outputs are the same up to "
        f"{number_text(found['exactness'])} of the largest.</p>"
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
        + folded(f"Groups of channels that go as one ({found['group_count']:,})", groups)
        + folded(f"Channels that could not be removed ({found['uncut_count']:,} tensors)", uncut)
    )
