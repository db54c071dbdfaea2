"""The closing tables: what a job has made of a model, and what a plan says it would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur import display

Json = Mapping[str, Any]
Format = Callable[[float | None], str]

COSTS: tuple[tuple[str, str, Format], ...] = (
    ("parameters", "parameters", display.number),
    ("nonzeros", "non-zeros", display.number),
    ("bytes", "bytes", display.size),
    ("macs", "MACs", display.number),
)


def gates_passed(report: Json) -> bool:
    """Whether no gate of the report has failed; true when there are none."""
    return all(gate.get("passed", True) for gate in report.get("gates") or [])


def show_report(report: Json) -> None:
    """Print dense, pruned and recovered side by side, then target and gates."""
    columns, rows = comparison(report)
    display.show_table(columns, rows, right=range(1, len(columns)))
    for line in verdicts(report):
        display.output.print(line, markup=False)


def comparison(report: Json) -> tuple[list[str], list[list[str]]]:
    """The table of a report: a row for each quantity, a column for each state, and the ratio."""
    quality, cost = report.get("quality") or {}, report.get("cost") or {}
    states = ["dense", "pruned"] + (["recovered"] if quality.get("recovered") else [])
    rows = [[label, *(form((cost.get(s) or {}).get(key)) for s in states)] for key, label, form in COSTS]
    last = states[-1]
    for row, (key, _, _) in zip(rows, COSTS, strict=True):
        row.append(display.ratio((cost.get(last) or {}).get(key), (cost.get("dense") or {}).get(key)))
    return ["", *states, "ratio"], rows


def verdicts(report: Json) -> list[str]:
    """One line for the target, one for each gate."""
    return []


def show_plan(plan: Json) -> None:
    """Print what a plan expects, or why it is not valid."""
    for fault in plan.get("errors") or []:
        display.output.print(f"{fault.get('pointer')}: {fault.get('message')}", markup=False)
    dense, pruned = plan.get("dense") or {}, plan.get("pruned") or {}
    rows: list[Sequence[object]] = [
        (label, form(dense.get(key)), form(pruned.get(key)), display.ratio(pruned.get(key), dense.get(key)))
        for key, label, form in COSTS
        if key in dense
    ]
    if rows:
        display.show_table(("", "dense", "pruned", "ratio"), rows, right=(1, 2, 3))
