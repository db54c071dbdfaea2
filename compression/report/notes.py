"""What a report says in plain words, most of all what did not get smaller or faster. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compression.anatomy.families import family_of
from compression.anatomy.graph import CHANNEL
from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.structures import unit_word
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
from compression.report.formats import bytes_text, percent, seconds_text, threads_text
from compression.specification import n_m, quantity

Json = Mapping[str, Any]


def notes(report: Json, granularity: str) -> list[str]:
    """Sentences for the top of the page, the most important first."""
    found = [_size(report, granularity), _speed(report, granularity), _aimed(report)]
    found += [_graph(report), _quality(report), *_recovery(report)]
    found += [_tokens(report), _domain(report), *_evaluation(report), *_overlap(report), *_gguf(report)]
    return [note for note in found if note]


def _size(report: Json, granularity: str) -> str:
    cost = report["cost"]
    dense, pruned = cost["dense"], cost[report["quality"]["final"]]
    ratio = pruned["bytes"] / dense["bytes"] if dense["bytes"] else 1.0
    if granularity == "layer":
        return (
            f"The weight files shrank to {percent(ratio)} of their size: "
            f"{dense['layers'] - pruned['layers']} of {dense['layers']} layers are gone."
        )
    if granularity == CHANNEL:
        return _fewer_channels(report["graph"], ratio)
    if report["widths"] is not None and report["widths"]["structures"][0]["layers"] is not None:
        return _varied(report["widths"], ratio)
    if report["low_rank"] is not None:
        return _low_rank(report["low_rank"], ratio)
    if report["vocabulary"] is not None:
        return _fewer_rows(report["vocabulary"], ratio)
    if report["widths"] is not None:
        gone = _gone(report["widths"]["structures"], report["model"]["architecture"])
        return f"The weight files shrank to {percent(ratio)} of their size: {gone} are gone."
    why = "zeros are stored like any other number"
    if pruned["dtype"] != dense["dtype"]:
        return (
            f"The weight files are {percent(ratio)} of their size because weights are now {pruned['dtype']} "
            f"instead of {dense['dtype']}. Pruning itself did not make them smaller: {why}."
        )
    if ratio > 0.98:
        packed = packed_bytes(pruned)
        return (
            f"The weight files did not get smaller: {why}. A format that stores the positions of the zeros "
            f"could hold them in about {bytes_text(packed)} instead of {bytes_text(pruned['bytes'])}; "
            "this artifact does not use one, so that every runtime can load it."
        )
    return f"The weight files are {percent(ratio)} of their size."


def _low_rank(found: Json, ratio: float) -> str:
    weights = found["weights"]
    count = f"{sum(one['rank'] is not None for one in weights)} of {len(weights)} weights"
    gone = f"{percent(found['sparsity'])} of their elements are gone"
    if found.get("atoms_per_entry", 1) > 1:
        return (
            f"The weight files are {percent(ratio)} of their size, masks included: {count} are dictionaries "
            f"with sparse codes, and {gone}. Dense kernels multiply with the zeros of the codes too."
        )
    return (
        f"The weight files shrank to {percent(ratio)} of their size: {count} are products of two thin ones, "
        f"and {gone}."
    )


def _fewer_rows(rows: Json, ratio: float) -> str:
    return (
        f"The weight files shrank to {percent(ratio)} of their size: {rows['dense'] - rows['kept']:,} of "
        f"{rows['dense']:,} rows of the vocabulary are gone."
    )


def _fewer_channels(graph: Json, ratio: float) -> str:
    gone = graph["units"] - graph["units_kept"]
    return (
        f"The files of the model shrank to {percent(ratio)} of their size: {gone:,} of {graph['units']:,} "
        "removable channels are gone."
    )


def _graph(report: Json) -> str:
    """Of a graph, what kept most channels."""
    graph = report["graph"]
    if graph is None or not graph["uncut"]:
        return ""
    kept: dict[str, int] = {}
    for one in graph["uncut"]:
        kept[one["reason"]] = kept.get(one["reason"], 0) + one["channels"]
    total = sum(kept.values())
    reason = max(kept, key=lambda name: (kept[name], name))
    channels = "1 channel" if total == 1 else f"{total:,} channels"
    if len(kept) == 1:
        return f"{channels} could not be removed, because {reason}."
    return f"{channels} could not be removed, {kept[reason]:,} of them because {reason}."


def _varied(widths: Json, ratio: float) -> str:
    gone = (
        f"{percent(widths['sparsity'])} of the units' parameters are gone, as many of a layer as it can spare"
    )
    if widths["layout"] == "packaged":
        return f"The weight files shrank to {percent(ratio)} of their size: {gone}."
    return (
        f"The weight files are {percent(ratio)} of their size: {gone}, and zeros bring all layers to the "
        "width of the widest. With output.layout packaged, or allocation uniform, it is smaller and faster."
    )


def packed_bytes(cost: Json) -> int:
    """Bytes that the weights would take with one bit a prunable weight and only non-zeros stored."""
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(str(cost["dtype"]), 4)
    zeros = cost["prunable_parameters"] - cost["prunable_nonzeros"]
    return int(cost["bytes"] - zeros * width + cost["prunable_parameters"] // 8)


def _gone(structures: Sequence[Json], architecture: str) -> str:
    """How many units of each kind are gone, and of what."""
    neurons_of = family_of(architecture).neurons_of
    found: dict[str, list[str]] = {}
    for one in structures:
        if one["kept"] < one["dense"]:
            place = neurons_of if one["kind"] == "neuron" else "layer"
            gone = f"{one['dense'] - one['kept']} of {one['dense']} {unit_word(one['kind'])}s"
            found.setdefault(place, []).append(gone)
    return " and ".join(f"{' and '.join(gone)} of every {place}" for place, gone in found.items())


def _speed(report: Json, granularity: str) -> str:
    latency = report["latency"]
    if latency is None:
        measured = "Latency was not measured in this job."
    else:
        measured = (
            f"Measured on {latency['device']} with {threads_text(latency['threads'])}, the pruned model is "
            f"{_compared(latency['cases'][0])} the dense one: a forward pass takes "
            f"{percent(latency['ratio'])} of the time ({_range(latency['cases'][0])})."
        )
    if granularity in ("layer", VOCABULARY, RANK, CHANNEL, *STRUCTURES):
        return measured
    expected = "Ordinary runtimes multiply by the zeros, so no speed-up is to be expected from them. "
    if n_m(granularity) == (2, 4):
        expected += "2:4 weights can be faster on NVIDIA sparse tensor cores after a conversion. "
    elif n_m(granularity) is not None:
        expected += f"No common hardware makes use of the pattern {granularity}. "
    return expected + measured


def _aimed(report: Json) -> str:
    """What was asked for of the latency, and whether it is reached."""
    predicted = (report["latency"] or {}).get("predicted")
    if predicted is None or predicted["aimed"] is None:
        return ""
    forward, target = report["latency"]["cases"][0], report["target"]
    measured = forward["pruned"]["median"]
    kind, amount = quantity("latency", target["requested"])
    reached, asked = (target["ratio"], amount) if kind == "ratio" else (measured, amount)
    verdict = "which is reached" if reached <= asked else f"which is missed by {percent(reached / asked - 1)}"
    return (
        f"Aimed at {seconds_text(predicted['aimed'])} for a forward pass ({target['requested']}), "
        f"{verdict}: the times of layers promised {seconds_text(predicted['pruned'])}, "
        f"{seconds_text(measured)} were measured."
    )


def _gguf(report: Json) -> list[str]:
    written = report["artifact"].get("gguf")
    if written is None:
        return []
    told = (
        f"{written['path']} ({bytes_text(written['bytes'])}) holds the same model for llama.cpp; it was read "
        "back, and every weight compared bit by bit. Nothing in it is quantised."
    )
    return [told, *written["remarks"]]


def _range(case: Json) -> str:
    low, high = case["ratio_range"]
    return f"with 95% confidence {percent(low)} to {percent(high)}"


def _compared(case: Json) -> str:
    """Faster or slower only where the two spreads (10th to 90th percentile) do not overlap."""
    dense, pruned = case["dense"], case["pruned"]
    if pruned["p90"] < dense["p10"]:
        return "faster than"
    if pruned["p10"] > dense["p90"]:
        return "slower than"
    return "as fast, within the spread of the runs, as"


def _quality(report: Json) -> str:
    quality = report["quality"]
    metric, final = quality["headline"], quality["final"]
    if metric is None:
        return "Quality was not evaluated: the job has no evaluation data."
    dense, value = (quality["dense"] or {}).get(metric), (quality[final] or {}).get(metric)
    if value is None:
        return f"The result's {metric} is not a finite number: the model is broken for use."
    if dense is None:
        return ""
    text = f"{metric.replace('_', ' ').capitalize()} went from {dense:.4g} to {value:.4g}"
    if metric == "perplexity":
        text += f" ({value / dense:.2f} times; lower is better)"
        if value > 3 * dense:
            return text + ". That is heavy damage: use a lower sparsity, a recovery, or both."
    return text + "."


def _tokens(report: Json) -> str:
    """Of a smaller vocabulary, what that means for figures that count by token."""
    rows = report["vocabulary"]
    if rows is None:
        return ""
    text = ""
    if rows["covered"] is not None:
        text = f"Of the tokens of the calibration dataset, {percent(rows['covered'])} are ones that stay. "
    found = rows["segmentation"]
    if found is None:
        return text.strip()
    if found["unchanged"]:
        return text + "The evaluation texts are the same tokens as before."
    text += "The evaluation texts are other tokens than before"
    if found["dense"] and found["pruned"]:
        text += f" ({found['pruned'] / found['dense']:.3f} times as many a byte)"
    return text + ": perplexity and loss count by token and do not compare; bits per byte and accuracy do."


def _recovery(report: Json) -> list[str]:
    recovery, quality = report["recovery"], report["quality"]
    if recovery is None or quality["headline"] is None:
        return []
    metric = quality["headline"]
    before, after = (quality["pruned"] or {}).get(metric), (quality["recovered"] or {}).get(metric)
    found = []
    if before is not None and after is not None:
        found.append(f"Recovery ({recovery['method']}) changed {metric} from {before:.4g} to {after:.4g}.")
    if recovery.get("best_step") == 0:
        found.append(
            "No step of the recovery made the held-out loss smaller, so the pruned weights were kept."
        )
    if recovery.get("held_out_samples") == 0:
        found.append("The recovery data was too small to hold a part out: overfitting was not watched for.")
    if recovery.get("stopped"):
        found.append(f"The recovery ended early: {recovery['stopped']}.")
    return found


def _domain(report: Json) -> str:
    quality, metric = report["quality"], report["quality"]["headline"]
    domain = quality["domain"]
    if domain is None or metric is None:
        return ""
    dense, value = (domain["dense"] or {}).get(metric), (domain[quality["final"]] or {}).get(metric)
    if value is None:
        return f"On the data of the domain, the result's {metric} is not a finite number."
    before = "" if dense is None else f"from {dense:.4g} "
    return (
        f"On the data of the domain, which is judged apart, {metric.replace('_', ' ')} went {before}to "
        f"{value:.4g}."
    )


def _evaluation(report: Json) -> list[str]:
    found = []
    for use, name in (("evaluation", "evaluation data"), ("domain_evaluation", "domain's evaluation data")):
        facts = report["data"].get(use) or {}
        for unit, least in (("tokens", 5000), ("images", 500)):
            if facts.get(unit, least) < least:
                found.append(f"The {name} is small ({facts[unit]:,} {unit}): small differences mean little.")
    return found


def _overlap(report: Json) -> list[str]:
    data, found = report["data"], []
    what = "images" if "images" in (data.get("evaluation") or {}) else "texts"
    for key, name in (("overlap", "Evaluation"), ("domain_overlap", "The domain's evaluation")):
        overlap = {use: count for use, count in (data.get(key) or {}).items() if count}
        if overlap:
            uses = " and ".join(f"{count} with {use.replace('_', ' ')}" for use, count in overlap.items())
            found.append(
                f"{name} shares {what} with other data of this job ({uses}), so its figures flatter the "
                "result."
            )
    return found
