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
    return all(gate.get("passed") for gate in report.get("gates") or [])


def show_report(report: Json) -> None:
    """Print dense, pruned and recovered side by side, then target, baselines and gates."""
    columns, rows = comparison(report)
    display.show_table(columns, rows, right=range(1, len(columns)))
    for line in verdicts(report):
        display.output.print(line, markup=False)


def comparison(report: Json) -> tuple[list[str], list[list[str]]]:
    """The table of a report: a row for each quantity, a column for each state, and final / dense."""
    final = str(report["quality"]["final"])
    states = ["dense", "pruned"] if final == "pruned" else ["dense", "pruned", final]
    rows = [*_cost_rows(report, states), *_measured_rows(report, states)]
    quality = report["quality"]
    rows += _quality_rows(quality, quality, states)
    if quality.get("domain"):
        rows += _quality_rows(quality, quality["domain"], states, ", domain")
    return ["", *states, "ratio"], rows


def verdicts(report: Json) -> list[str]:
    """Lines below the table: requested against achieved, other ways to the same target, each gate."""
    target = report["target"]
    achieved = target.get("achieved")
    ratio = target.get("ratio")
    form = display.seconds if target["kind"] == "latency" else display.number
    reached = "not measured" if achieved is None else form(achieved)
    if ratio is not None:
        reached += f" ({ratio:.3f}x)"
    lines = [f"target: {target['kind']} {target['requested']} requested, {reached} achieved"]
    headline = report["quality"].get("headline")
    for baseline in report.get("baselines") or []:
        value = (baseline.get("metrics") or {}).get(headline)
        domain = (baseline.get("domain") or {}).get(headline)
        apart = "" if domain is None else f", domain {display.number(domain)}"
        lines.append(f"baseline {baseline['name']}: {headline} {display.number(value)}{apart}")
    return lines + [_gate_line(gate) for gate in report.get("gates") or []]


def show_plan(plan: Json) -> None:
    """Print what a plan expects, or why it is not valid."""
    for fault in plan.get("errors") or []:
        display.output.print(f"{fault.get('pointer')}: {fault.get('message')}", markup=False)
    dense, pruned = plan.get("dense") or {}, plan.get("pruned") or {}
    rows = [
        [label, form(dense.get(key)), form(pruned.get(key)), display.ratio(pruned.get(key), dense.get(key))]
        for key, label, form in (*COSTS, ("memory_bytes", "memory", display.size))
        if dense.get(key) is not None
    ]
    latency = plan.get("latency") or {}
    rows += [_latency_row(one) for one in latency.get("predictions") or []]
    if rows:
        display.show_table(("", "dense", "pruned", "ratio"), rows, right=(1, 2, 3))
    if latency.get("reason"):
        display.output.print(f"latency: {latency['reason']}", markup=False)
    estimate = plan.get("estimate") or {}
    if estimate.get("seconds") is not None:
        memory = display.size(estimate.get("memory_bytes"))
        took = display.seconds(estimate["seconds"])
        display.output.print(f"estimate: {took}, {memory} of memory while running", markup=False)
    for note in plan.get("notes") or []:
        display.output.print(f"note: {note}", markup=False)


def _latency_row(predicted: Json) -> list[str]:
    """The time of one forward pass on one device."""
    dense, pruned = predicted.get("dense"), predicted.get("pruned")
    times = display.seconds(dense), display.seconds(pruned), display.ratio(pruned, dense)
    return [f"latency, {predicted.get('device')}, {predicted.get('threads')} threads", *times]


def _cost_rows(report: Json, states: Sequence[str]) -> list[list[str]]:
    costs = [report["cost"].get(state) or {} for state in states]
    rows = [_row(label, form, [cost.get(key) for cost in costs]) for key, label, form in COSTS]
    zeros = [display.number(cost.get("sparsity")) for cost in costs]
    return [*rows, ["sparsity", *zeros, ""]]


def _measured_rows(report: Json, states: Sequence[str]) -> list[list[str]]:
    """Latency and memory are measured of the dense and of the final model only."""
    rows = []
    gap = [None] * (len(states) - 2)
    for case in (report.get("latency") or {}).get("cases") or []:
        label = "latency" if case["name"] == "forward" else f"latency {case['name']}"
        values = [case["dense"]["median"], *gap, case["pruned"]["median"]]
        rows.append(_row(label, display.seconds, values))
    memory = report.get("memory")
    if memory and memory.get("pruned"):
        figure = memory["figure"]
        rows.append(_row("memory", display.size, [memory["dense"][figure], *gap, memory["pruned"][figure]]))
    return rows


def _quality_rows(quality: Json, found: Json, states: Sequence[str], where: str = "") -> list[list[str]]:
    qualities = [found.get(state) or {} for state in states]
    names = dict.fromkeys(
        name for values in qualities for name, value in values.items() if isinstance(value, int | float)
    )
    ordered = sorted(names, key=lambda name: name != quality.get("headline"))
    return [
        _row(name + where, display.number, [values.get(name) for values in qualities]) for name in ordered
    ]


def _row(label: str, form: Format, values: Sequence[float | None]) -> list[str]:
    return [label, *(form(value) for value in values), display.ratio(values[-1], values[0])]


def _gate_line(gate: Json) -> str:
    bound = str(gate["bound"])
    sign = "<=" if bound.startswith("max") else ">="
    times = "x" if bound.endswith("_ratio") else ""
    value = "-" if gate.get("value") is None else f"{display.number(gate['value'])}{times}"
    verdict = "passed" if gate.get("passed") else "FAILED"
    reason = f" ({gate['reason']})" if gate.get("reason") else ""
    return f"gate {gate['metric']} {sign} {display.number(gate['limit'])}{times}: {verdict}, {value}{reason}"
