"""Arithmetic of a report: ratios, target, layers, classes. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from compression.anatomy.slices import expert_of

Json = Mapping[str, Any]

RATIOS = ("parameters", "nonzeros", "prunable_nonzeros", "bytes", "macs", "macs_nonzero")


def ratios(dense: Json, pruned: Json) -> dict[str, float | None]:
    """Pruned / dense of every count; None where the dense one is zero."""
    return {name: pruned[name] / dense[name] if dense[name] else None for name in RATIOS}


def achieved(target: Json, dense: Json, pruned: Json, units: Json | None = None) -> dict[str, Any]:
    """Requested against achieved: ``kind``, ``requested`` (as written), ``achieved`` (number), ``ratio``.

    ``target`` is the specification's, {kind: value}. For ``sparsity`` the achieved value is the share of the
    dense model's prunable weights that are zero or gone (of neurons and heads, ``units``: of the parameters
    of all of them that are gone; of rows of the vocabulary: of rows); for ``layers`` the number of layers
    removed; else the pruned model's own count.
    """
    (kind, requested), *_ = target.items()
    ratio: float | None = None
    value: float | None
    if kind == "sparsity":
        zeros = 1 - pruned["prunable_nonzeros"] / dense["prunable_parameters"]
        value = zeros if units is None else units["sparsity"]
    elif kind == "layers":
        value = dense["layers"] - pruned["layers"]
    else:
        value = pruned.get(kind)
        ratio = value / dense[kind] if value is not None and dense.get(kind) else None
    return {"kind": kind, "requested": requested, "achieved": value, "ratio": ratio}


def timed(target: Mapping[str, Any], latency: Json | None) -> dict[str, Any]:
    """The target of ``achieved`` with what was measured of it, if it is a latency: ``achieved`` seconds,
    ``ratio`` of the same rounds, and ``aimed`` seconds (what a ratio means by the table of times)."""
    if target["kind"] != "latency" or latency is None:
        return dict(target)
    forward = latency["cases"][0]
    aimed = (latency.get("predicted") or {}).get("aimed")
    return {
        **target,
        "achieved": forward["pruned"]["median"],
        "ratio": latency["ratio"],
        "aimed": aimed,
    }


def site_rows(
    dense: Json,
    cost: Json,
    facts: Sequence[Json],
    kept: Sequence[int] | None = None,
    experts: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """One row a prunable weight of the final model, with the errors that pruning measured there.

    ``compressibility`` is that of the dense weight and that of what is left of it; ``kept`` are the dense
    model's layers that the final one has (None: all) and ``experts`` the experts of every layer, so that each
    weight is compared with what it was.
    """
    errors = {fact["name"]: fact for fact in facts}
    # Both factors of a weight are compared with it.
    whole = {name: fact["name"] for fact in facts for name in fact.get("factors", ())}
    before = _by_layer(dense["sites"])
    rows = []
    for layer, sites in _by_layer(cost["sites"]).items():
        origin = before[layer if kept is None else kept[layer]]
        if experts is not None:
            origin = [was for was in origin if expert_of(was["name"]) in (None, *experts[layer])]
        elif kept is None:
            # A layer may have lost a whole attention or feed-forward.
            known = {was["name"]: was for was in origin}
            origin = [known[whole.get(site["name"], site["name"])] for site in sites]
        for site, was in zip(sites, origin, strict=True):
            fact = errors.get(whole.get(site["name"], site["name"]), {})
            rows.append(
                {
                    **site,
                    "compressibility": {"dense": was["compressibility"], "final": site["compressibility"]},
                    "reconstruction_error": fact.get("reconstruction_error"),
                    "weight_error": fact.get("weight_error"),
                }
            )
    return rows


def _by_layer(sites: Sequence[Json]) -> dict[int, list[Json]]:
    layers: dict[int, list[Json]] = {}
    for site in sites:
        layers.setdefault(site["layer"], []).append(site)
    return layers


def layer_rows(sites: Sequence[Json], facts: Sequence[Json] = ()) -> list[dict[str, Any]]:
    """One row a layer: sparsity of its weights together, mean and largest of their errors, mean of their PQ
    indices before and after (``pq_index``). Where experts went, the errors are the facts of the whole layer:
    what all its experts are, and what they give together."""
    rows = []
    whole = {fact["layer"]: fact for fact in facts if fact.get("kind") == "expert"}
    for layer, members in sorted(_by_layer(sites).items()):
        size = sum(prod(site["shape"]) for site in members)
        kept = sum(site["nonzeros"] for site in members)
        told = [whole[layer]] if layer in whole else members
        errors = [s["reconstruction_error"] for s in told if s.get("reconstruction_error") is not None]
        weights = [s["weight_error"] for s in told if s.get("weight_error") is not None]
        rows.append(
            {
                "layer": layer,
                "weights": size,
                "nonzeros": kept,
                "sparsity": 1 - kept / size,
                "reconstruction_error": sum(errors) / len(errors) if errors else None,
                "largest_reconstruction_error": max(errors, default=None),
                "weight_error": sum(weights) / len(weights) if weights else None,
                "pq_index": {state: _mean_index(members, state) for state in ("dense", "final")},
            }
        )
    return rows


def _mean_index(members: Sequence[Json], state: str) -> float | None:
    found = [site["compressibility"][state]["index"] for site in members]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def compare_classes(dense: Json, other: Json) -> dict[str, Any]:
    """What changed between two results of ``evaluation.quality.evaluate`` on the same labelled examples.

    Returns ``flipped`` (examples whose predicted class changed), ``right_to_wrong``, ``wrong_to_right``,
    ``examples`` (positions of flipped ones, the first 50) and ``classes`` with the accuracy before and after.
    """
    rows = list(zip(dense["truth"], dense["predictions"], other["predictions"], strict=True))
    flipped = [number for number, (_, a, b) in enumerate(rows) if a != b]
    after = {entry["label"]: entry for entry in other["classes"]}
    classes = []
    for before in dense["classes"]:
        count = before["examples"]
        first = before["correct"] / count if count else None
        second = after[before["label"]]["correct"] / count if count else None
        change = None if first is None or second is None else second - first
        classes.append(
            {"label": before["label"], "examples": count, "dense": first, "final": second, "change": change}
        )
    return {
        "examples": len(rows),
        "flipped": len(flipped),
        "right_to_wrong": sum(t == a != b for t, a, b in rows),
        "wrong_to_right": sum(t == b != a for t, a, b in rows),
        "flips": [
            {"position": n, "truth": rows[n][0], "dense": rows[n][1], "final": rows[n][2]}
            for n in flipped[:50]
        ],
        "classes": classes,
    }
