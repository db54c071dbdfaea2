"""Puts a report together: JSON of the schema ``secateur.report/1``. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compression.report import gates
from compression.report.figures import achieved, compare_classes, layer_rows, ratios, site_rows, timed
from compression.report.gates import LOWER_IS_BETTER
from compression.report.notes import notes
from compression.report.runtimes import runtimes
from compression.report.schema import SCHEMA
from compression.report.types import ReportInputs

HEADLINES = {
    "text-generation": "perplexity",
    "text2text-generation": "perplexity",
    "text-classification": "accuracy",
    "feature-extraction": "embedding_cosine",
    "image-classification": "accuracy",
}
MACS_COUNTER = (
    "multiply-accumulates of the matrix products of one forward pass over one sequence (for a decoder behind "
    "an encoder: and one target as long; linear layers, attention scores and values, head); look-ups, "
    "norms and activations count nothing; zeros count"
)
GRAPH_MACS_COUNTER = (
    "multiply-accumulates of one sample in convolutions, matrix products and recurrent layers; biases, norms "
    "and whatever works element by element count nothing; zeros count"
)
COST_KEYS = (
    "parameters",
    "nonzeros",
    "prunable_parameters",
    "prunable_nonzeros",
    "sparsity",
    "bytes",
    "dtype",
    "layers",
    "macs",
    "macs_nonzero",
    "sequence_length",
)


def build(inputs: ReportInputs) -> dict[str, Any]:
    """The report as JSON data, valid by the schema; numbers that are not finite are null."""
    specification = dict(inputs.specification)
    granularity = str((specification.get("structure") or {}).get("granularity") or "unstructured")
    cost = _cost(inputs)
    quality = _quality(inputs)
    final = quality["final"]
    sites = _sites(inputs, final)
    latency = _latency(inputs.measured.get("latency"))
    target = achieved(specification["target"], cost["dense"], cost[final], inputs.units)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": {key: inputs.recipe.get(key) for key in ("name", "title", "summary", "paper")},
        "model": dict(inputs.model),
        "target": timed(target, latency),
        "granularity": granularity,
        "cost": cost,
        "quality": quality,
        "damage": _damage(inputs, final),
        "baselines": _baselines(inputs),
        "layers": layer_rows(sites, inputs.facts),
        "sites": sites,
        "dropped": None if inputs.dropped is None else dict(inputs.dropped),
        "widths": None if inputs.widths is None else dict(inputs.widths),
        "low_rank": None if inputs.low_rank is None else dict(inputs.low_rank),
        "vocabulary": None if inputs.vocabulary is None else dict(inputs.vocabulary),
        "graph": None if inputs.graph is None else dict(inputs.graph),
        "recovery": None if inputs.recovery is None else dict(inputs.recovery),
        "latency": latency,
        "memory": inputs.measured.get("memory"),
        "verification": None if inputs.verification is None else dict(inputs.verification),
        "data": dict(inputs.data),
        "artifact": dict(inputs.artifact),
    }
    report["gates"] = gates.judge(
        (specification.get("evaluation") or {}).get("gates") or [], gates.figures(report)
    )
    report["runtimes"] = _runtimes(inputs, granularity, report["latency"])
    report["notes"] = notes(report, granularity)
    report["reproducibility"] = _reproducibility(inputs)
    report["summary"] = _summary(report)
    cleaned: dict[str, Any] = plain(report)
    return cleaned


def _runtimes(
    inputs: ReportInputs, granularity: str, latency: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    return runtimes(
        inputs.model["task"],
        granularity,
        inputs.versions,
        verified=inputs.verification is not None,
        latency_ratio=latency["ratio"] if latency else None,
        gguf=inputs.artifact.get("gguf") is not None,
        layout=_layout(inputs),
        graph=inputs.graph is not None,
    )


def _layout(inputs: ReportInputs) -> str | None:
    if inputs.low_rank is not None:
        return "packaged"
    return None if inputs.widths is None else inputs.widths["layout"]


def _cost(inputs: ReportInputs) -> dict[str, Any]:
    parts: dict[str, Any] = {
        name: None
        if inputs.cost.get(name) is None
        else {key: inputs.cost[name].get(key) for key in COST_KEYS}
        for name in ("dense", "pruned", "recovered")
    }
    if inputs.recovery is not None and parts["recovered"] is None:
        parts["recovered"] = parts["pruned"]
    last = parts["recovered"] if inputs.recovery is not None else parts["pruned"]
    counter = MACS_COUNTER if inputs.graph is None else GRAPH_MACS_COUNTER
    return parts | {"ratios": ratios(parts["dense"], last), "macs_counter": counter}


def _sites(inputs: ReportInputs, final: str) -> list[dict[str, Any]]:
    last = inputs.cost.get(final) or inputs.cost["pruned"]
    kept = inputs.dropped["kept"] if inputs.dropped is not None else None
    return site_rows(inputs.cost["dense"], last, inputs.facts, kept, inputs.experts)


def _metrics(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if result is None else dict(result["metrics"])


def _quality(inputs: ReportInputs) -> dict[str, Any]:
    recovered = inputs.recovery is not None
    evaluated = inputs.quality.get("dense") is not None
    quality: dict[str, Any] = {
        "final": "recovered" if recovered else "pruned",
        "headline": _metric(inputs) if evaluated else None,
        "dense": _metrics(inputs.quality.get("dense")),
        "pruned": _metrics(inputs.quality.get("pruned")),
        "recovered": _metrics(inputs.quality.get("recovered")) if recovered else None,
        "counts": inputs.quality["dense"].get("counts") if evaluated else None,
    }
    quality["domain"] = _domain(inputs, recovered=recovered)
    names = sorted({name for key in ("dense", "pruned", "recovered") for name in quality[key] or {}})
    quality["lower_is_better"] = [name for name in names if name in LOWER_IS_BETTER]
    return quality


def _metric(inputs: ReportInputs) -> str | None:
    """The metric that headlines the report; that of a language model which may read a text as other tokens
    than the dense one is bits per byte, where they were counted."""
    usual = HEADLINES.get(str(inputs.model["task"]))
    if inputs.vocabulary is not None and "bits_per_byte" in inputs.quality["dense"]["metrics"]:
        return "bits_per_byte"
    return usual


def _domain(inputs: ReportInputs, *, recovered: bool) -> dict[str, Any] | None:
    """Quality on the text of the domain, by the metrics of the general text; None where there is none."""
    found = inputs.domain_quality
    if found.get("dense") is None:
        return None
    return {
        "dense": _metrics(found["dense"]),
        "pruned": _metrics(found.get("pruned")),
        "recovered": _metrics(found.get("recovered")) if recovered else None,
        "counts": found["dense"].get("counts"),
        "divergence": {
            name: found[name].get("divergence")
            for name in ("pruned", "recovered")
            if found.get(name) is not None
        },
    }


def _damage(inputs: ReportInputs, final: str) -> dict[str, Any]:
    divergence = {
        name: inputs.quality[name].get("divergence")
        for name in ("pruned", "recovered")
        if inputs.quality.get(name) is not None
    }
    dense, last = inputs.quality.get("dense"), inputs.quality.get(final)
    labelled = dense is not None and last is not None and "predictions" in dense
    return {
        "divergence": divergence or None,
        "classes": compare_classes(dense, last) if labelled and dense and last else None,
    }


def _baselines(inputs: ReportInputs) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "metrics": dict(result["quality"]["metrics"]),
            "divergence": result["quality"].get("divergence"),
            "domain": _metrics(result.get("domain")),
        }
        for name, result in sorted(inputs.baselines.items())
    ]


def _latency(latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    forward = next(case for case in latency["cases"] if case["name"] == "forward")
    return {"predicted": None, **latency, "ratio": forward["ratio"]}


def _reproducibility(inputs: ReportInputs) -> dict[str, Any]:
    seconds = {name: float(value) for name, value in inputs.seconds.items()}
    total = sum(seconds.values())
    specification = inputs.specification
    return {
        "specification": dict(specification),
        "seeds": {
            "job": specification.get("seed", 0),
            "calibration": (specification.get("calibration") or {}).get("seed"),
            "domain_calibration": _domain_seed(specification),
        },
        "versions": dict(inputs.versions),
        "inputs": dict(inputs.inputs),
        "device": dict(inputs.device),
        "seconds": seconds,
        "wall_seconds": total,
        "device_seconds": total,
        "resumed": inputs.resumed,
    }


def _domain_seed(specification: Mapping[str, Any]) -> int | None:
    domain = (specification.get("calibration") or {}).get("domain") or {}
    seed: int | None = domain.get("seed")
    return seed


def _pair(dense: float | None, final: float | None) -> dict[str, float | None]:
    ratio = final / dense if dense and final is not None else None
    return {"dense": dense, "final": final, "ratio": ratio}


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The job's main figures; ``gates_passed`` is null when there was no gate."""
    quality, cost, memory = report["quality"], report["cost"], report["memory"]
    final = cost[quality["final"]]
    headline = quality["headline"]
    verdicts = report["gates"]
    latency = report["latency"]["cases"][0] if report["latency"] else None
    figure = memory["figure"] if memory and memory.get("pruned") else None
    return {
        "recipe": report["recipe"]["name"],
        "granularity": report["granularity"],
        "target": report["target"],
        "sparsity": final["sparsity"],
        "gates_passed": all(gate["passed"] for gate in verdicts) if verdicts else None,
        "quality": _headline(headline, quality),
        "domain_quality": _headline(headline, quality["domain"]),
        **{
            name: _pair(cost["dense"][name], final[name])
            for name in ("parameters", "nonzeros", "bytes", "macs")
        },
        "latency": _pair(latency["dense"]["median"], latency["pruned"]["median"]) if latency else None,
        "memory": _pair(memory["dense"][figure], memory["pruned"][figure]) if memory and figure else None,
        "wall_seconds": report["reproducibility"]["wall_seconds"],
    }


def _headline(metric: str | None, quality: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The task's main metric in each state."""
    if metric is None or quality is None:
        return None
    states = ("dense", "pruned", "recovered")
    return {"metric": metric, **{name: (quality[name] or {}).get(metric) for name in states}}


def plain(value: Any) -> Any:
    """JSON data with every number that is not finite made null, and tuples made lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
