"""Gates: bounds that the user set, and whether the result keeps them. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[float | None, float | None]
"""(of the dense model, of the result); None where there is no such number."""

LOWER_IS_BETTER = frozenset(
    {
        "perplexity",
        "bits_per_byte",
        "loss",
        "mean_kl",
        "parameters",
        "nonzeros",
        "bytes",
        "macs",
        "latency",
        "memory",
    }
)


def judge(gates: Sequence[Mapping[str, Any]], figures: Mapping[str, Pair]) -> list[dict[str, Any]]:
    """One verdict a gate: ``metric``, ``bound``, ``limit``, ``value`` (compared), ``passed``, ``reason``.

    Ratios are result / dense. A metric that was not measured, or that is not finite, fails and says so: a
    gate is a promise about a number, and without the number there is none.
    """
    verdicts = []
    for gate in gates:
        metric = gate["metric"]
        bound, limit = next((name, gate[name]) for name in _BOUNDS if gate.get(name) is not None)
        dense, final = figures.get(metric, (None, None))
        value, reason = _value(metric, bound, dense, final, metric in figures)
        passed = value is not None and (value <= limit if bound.startswith("max") else value >= limit)
        verdicts.append(
            {
                "metric": metric,
                "bound": bound,
                "limit": limit,
                "value": value,
                "passed": passed,
                "reason": reason,
            }
        )
    return verdicts


_BOUNDS = ("max", "min", "max_ratio", "min_ratio")


def _value(
    metric: str, bound: str, dense: float | None, final: float | None, known: bool
) -> tuple[float | None, str | None]:
    if not known:
        return None, f"{metric} was not measured in this job"
    if final is None:
        return None, f"{metric} of the result is not a finite number"
    if not bound.endswith("_ratio"):
        return final, None
    if not dense:
        return None, f"{metric} of the dense model is zero or not a finite number, so there is no ratio"
    return final / dense, None


def figures(report: Mapping[str, Any]) -> dict[str, Pair]:
    """Every number of a report that a gate may name, as (dense, result)."""
    quality, cost = report["quality"], report["cost"]
    final = quality["final"]
    found: dict[str, Pair] = {
        name: (cost["dense"].get(name), cost[final].get(name))
        for name in ("parameters", "nonzeros", "bytes", "macs", "macs_nonzero", "sparsity")
    }
    for metric, value in (quality.get(final) or {}).items():
        found[metric] = ((quality.get("dense") or {}).get(metric), value)
    domain = quality.get("domain") or {}
    for metric, value in (domain.get(final) or {}).items():
        found[f"domain_{metric}"] = ((domain.get("dense") or {}).get(metric), value)
    divergence = (report["damage"]["divergence"] or {}).get(final) or {}
    for name, value in divergence.items():
        if isinstance(value, int | float) and name != "positions":
            found[name] = (None, value)
    if report["latency"] is not None:
        for case in report["latency"]["cases"]:
            name = "latency" if case["name"] == "forward" else f"latency_{case['name']}"
            found[name] = (case["dense"]["median"], case["pruned"]["median"])
    memory = report["memory"]
    if memory is not None and memory.get("pruned"):
        figure = memory["figure"]
        found["memory"] = (memory["dense"][figure], memory["pruned"][figure])
    return found
