"""The sections of the HTML page, in the order they are read. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from compression.anatomy.structures import unit_word
from compression.report import plots
from compression.report.formats import (
    bytes_text,
    count_text,
    number_text,
    percent,
    runs_text,
    seconds_text,
    threads_text,
)
from compression.report.markup import Cell, figure, folded, listing, number, table

Json = Mapping[str, Any]
Row = list[Cell | str]


def plain_words(report: Json) -> str:
    """The notes."""
    return listing(report["notes"])


def before_and_after(report: Json) -> str:
    """Counts as bars and as a table."""
    cost, final = report["cost"], report["quality"]["final"]
    groups: list[tuple[str, list[plots.Bar], plots.Format]] = []
    rows: list[Row] = []
    for key, name, form in (
        ("parameters", "Parameters", count_text),
        ("nonzeros", "Non-zeros", count_text),
        ("bytes", "Weight files", bytes_text),
        ("macs", "MACs, zeros included", count_text),
        ("macs_nonzero", "MACs by non-zeros only", count_text),
    ):
        dense, last = cost["dense"][key], cost[final][key]
        groups.append((name, [("dense", dense), (final, last)], form))
        rows.append([name, number(form(dense)), number(form(last)), number(percent(cost["ratios"][key]))])
    target = report["target"]
    reached = (seconds_text if target["kind"] == "latency" else number_text)(target["achieved"])
    caption = f"Target: {target['kind']} {target['requested']}; reached {reached}" + (
        f" ({percent(target['ratio'])} of dense)." if target["ratio"] is not None else "."
    )
    plot = figure(
        "What it costs",
        plots.grouped_bars("Dense and result: parameters, non-zeros, bytes, MACs", groups),
        f"MACs{_counted(report)}: {cost['macs_counter']}.",
        ("dense", final),
    )
    counts = table(["", number("dense"), number(final), number("ratio")], rows, caption)
    return f'<div class="plots">{plot}<div>{counts}</div></div>'


def _counted(report: Json) -> str:
    if report["graph"] is not None:
        return ""
    return f" of one sequence of {report['cost']['dense']['sequence_length']} tokens"


def layers(report: Json) -> str:
    """Sparsity and reconstruction error per layer, and every weight in a folded table."""
    rows = report["layers"]
    parts = []
    if report["dropped"] is not None:
        parts.append(_dropped(report))
    if report["widths"] is not None:
        parts.append(_widths(report["widths"]))
    if report["vocabulary"] is not None:
        parts.append(_vocabulary(report["vocabulary"]))
    if any(row["sparsity"] > 0 for row in rows):
        sparsity = plots.columns(
            "Sparsity per layer",
            [(str(row["layer"]), row["sparsity"]) for row in rows],
            percent,
            top=1.0,
        )
        parts.append(
            figure("Sparsity per layer", sparsity, "Share of zeros among the layer's prunable weights.")
        )
    if any(row["reconstruction_error"] is not None for row in rows):
        error = plots.columns(
            "Reconstruction error per layer",
            [(str(row["layer"]), row["reconstruction_error"]) for row in rows],
            _short,
        )
        told = (
            "Share of the energy of each weight's outputs on the calibration data that pruning lost, "
            "mean over the layer's weights (where experts went: of all of them together), before recovery."
        )
        parts.append(figure("Reconstruction error per layer", error, told))
    plotted = f'<div class="plots">{"".join(parts)}</div>' if parts else ""
    return (
        plotted
        + (_low_rank(report["low_rank"]) if report["low_rank"] is not None else "")
        + folded("How compressible each layer's values are (PQ index)", _compressibility(report))
        + folded(f"All {len(report['sites'])} prunable weights", _sites(report))
    )


def _compressibility(report: Json) -> str:
    told = (
        "0: all magnitudes of a weight are alike, so that none is dispensable by its size; near 1: a few "
        "hold nearly everything. Dense: of all elements; result: of those that are left. Mean over the "
        "layer's weights, p = 1, q = 2 (Diao et al. 2023)."
    )
    rows: list[Row] = [
        [
            str(row["layer"]),
            number(number_text(row["pq_index"]["dense"])),
            number(number_text(row["pq_index"]["final"])),
        ]
        for row in report["layers"]
    ]
    return table(["layer", number("dense"), number("result")], rows, told)


def _short(value: float | None) -> str:
    return number_text(None if value is None else float(f"{value:.2g}"))


_JUDGED = {
    "run": "of each run of layers, by its first one; the cheapest run was taken",
    "separate": "of each layer alone; the cheapest were taken",
    "greedy": "of all that was gone after each round, which took the cheapest layer of those left",
    "collapse": "of all that was gone after each round, by the first layer of the run that it took",
}


def _dropped(report: Json) -> str:
    dropped, before = report["dropped"], report["cost"]["dense"]["layers"]
    gone = sorted(set(range(before)) - set(dropped["kept"]))
    words = f"Of layers 0 to {before - 1}, {runs_text(gone)} went." if gone else ""
    merged = [one["layer"] for one in dropped.get("merged") or []]
    if merged:
        words += f" They were merged into {runs_text(sorted(merged))}."
    tried = dropped.get("tried") or []
    if not tried:
        return figure("Removed layers", " ", words)
    chosen = {gone[0]} if dropped["selection"] == "run" else set(gone)
    plot = plots.columns(
        f"Cost by {dropped['criterion']}",
        [(str(one["layers"][0]), one["cost"]) for one in tried],
        _short,
        chosen=[str(layer) for layer in chosen],
    )
    told = f"{words} Cost by the criterion {dropped['criterion']} {_JUDGED[dropped['selection']]}."
    return figure("Which layers to remove", plot, told)


def _vocabulary(found: Json) -> str:
    rows: list[Row] = [
        ["rows of the dense model", number(f"{found['dense']:,}")],
        ["rows that stay", number(f"{found['kept']:,}")],
        ["of these, special and added tokens", number(f"{found['required']['specials']:,}")],
        ["of these, the alphabet", number(f"{found['required']['alphabet']:,}")],
        ["calibration tokens that stay", number(percent(found["covered"]))],
    ]
    told = (
        f"Rows of the vocabulary by the criterion {found['criterion']}. "
        "The alphabet is what every text can be encoded with."
    )
    return table(["vocabulary", number("")], rows, told)


def _low_rank(found: Json) -> str:
    rows: list[Row] = [
        [
            one["name"],
            number(" × ".join(map(str, one["shape"]))),
            number("dense" if one["rank"] is None else f"{one['rank']:,}"),
        ]
        for one in found["weights"]
    ]
    words = (
        f"{percent(found['sparsity'])} of the elements of these weights are gone; the code in the artifact "
        "multiplies by one factor and then by the other."
    )
    return folded("Rank of every weight", table(["weight", number("shape"), number("rank")], rows, words))


def _widths(widths: Json) -> str:
    rows: list[Row] = [
        [f"{unit_word(one['kind'])}s of a layer", number(f"{one['dense']:,}"), number(_kept(one))]
        for one in widths["structures"]
    ]
    equal = widths["structures"][0]["layers"] is None
    layout = _LAYOUTS["turned" if equal and widths["layout"] is not None else widths["layout"]]
    words = f"{percent(widths['sparsity'])} of the parameters of these units are gone; {layout}."
    plain = table(["", number("dense"), number("result")], rows, words)
    drawn = [
        plots.columns(
            f"{one['kind']}s that stay, layer by layer",
            [(str(layer), kept) for layer, kept in enumerate(one["layers"])],
            lambda value: f"{value:,.0f}",
            top=one["dense"],
        )
        for one in widths["structures"]
        if one["layers"] is not None
    ]
    return figure("Widths", plain, " ") + "".join(figure("Layer by layer", plot, " ") for plot in drawn)


_LAYOUTS = {
    None: "all layers kept as many",
    "padded": "layers kept numbers of their own, and zeros bring them all to the width of the widest",
    "packaged": "layers kept numbers of their own, which the code in the artifact builds",
    "turned": "all layers kept as many, each norm in a basis of its own, with the code in the artifact",
}


def _kept(one: Json) -> str:
    if one["layers"] is None:
        return f"{one['kept']:,}"
    return f"{min(one['layers']):,} to {max(one['layers']):,}"


def _sites(report: Json) -> str:
    return table(
        [
            "weight",
            "shape",
            number("sparsity"),
            number("non-zeros"),
            number("reconstruction error"),
            number("PQ index, dense"),
            number("PQ index, result"),
            number("removable by its bound"),
        ],
        [
            [
                Cell(site["name"], "code wide"),
                " × ".join(map(str, site["shape"])),
                number(percent(site["sparsity"])),
                number(f"{site['nonzeros']:,}"),
                number(number_text(site["reconstruction_error"])),
                *_spread(site["compressibility"]),
            ]
            for site in report["sites"]
        ],
    )


def _spread(found: Json) -> list[Cell]:
    dense, final = found["dense"], found["final"]
    removable = percent(dense["removable"] / dense["count"]) if dense["count"] else "–"
    return [number(number_text(dense["index"])), number(number_text(final["index"])), number(removable)]


def recovery(report: Json) -> str:
    """The curve of the recovery."""
    found = report["recovery"]
    if found is None:
        return ""
    curve = found.get("curve") or []
    series = [
        ("pruned", [(point["step"], point["loss"]) for point in curve if point["loss"] is not None]),
        (
            "recovered",
            [(point["step"], point["held_out"]) for point in curve if point["held_out"] is not None],
        ),
    ]
    plot = plots.curves(
        "Loss over the steps of the recovery", series, lambda v: number_text(float(f"{v:.3g}"))
    )
    told = (
        "Orange: loss of the step's batch. Green: loss of the held-out share, which chose the state of step "
        f"{found.get('best_step', 0)}."
    )
    rows: list[Row] = [
        ["method", number(found["method"])],
        ["loss", number(str(found.get("loss", "–")))],
        ["steps", number(f"{found.get('steps', 0):,}")],
        ["step that was kept", number(f"{found.get('best_step', 0):,}")],
        ["trained parameters", number(count_text(found.get("trained_parameters")))],
        ["samples trained on", number(f"{found.get('training_samples', 0):,}")],
        ["samples held out", number(f"{found.get('held_out_samples', 0):,}")],
    ]
    loading = found.get("loading")
    if loading is not None:
        rows.append(["time spent waiting for images", number(percent(loading["waited_share"]))])
    facts = table(["recovery", ""], rows)
    return f'<div class="plots">{figure("Loss", plot, told)}<div>{facts}</div></div>'


def speed(report: Json) -> str:
    """Latency with its spread, throughput, peak memory."""
    latency, memory, final = report["latency"], report["memory"], report["quality"]["final"]
    parts = []
    if latency is not None:
        rows = [
            (f"{case['name'].capitalize()}: {case['what']}", series, case[key])
            for case in latency["cases"]
            for key, series in (("dense", "dense"), ("pruned", final))
        ]
        repeats = latency["cases"][0]["dense"]["repeats"]
        told = (
            f"Median of {repeats} interleaved runs, whiskers from the 10th to the 90th percentile. "
            f"{latency['device']}, {threads_text(latency['threads'])}, {latency['runtime']}; "
            f"dense in {latency['dtype']['dense']}, result in {latency['dtype']['pruned']}."
        )
        parts.append(figure("Latency", plots.ranges("Latency", rows, seconds_text), told, ("dense", final)))
        parts.append(f"<div>{_throughput(latency, final, report)}{_memory(memory, final)}</div>")
    else:
        parts.append(f"<div>{_memory(memory, final)}</div>" if memory else "")
    content = "".join(parts)
    return f'<div class="plots">{content}</div>' if content else "<p>Not measured in this job.</p>"


def _throughput(latency: Json, final: str, report: Json) -> str:
    rows = [
        [
            case["name"],
            number(number_text(case["dense"]["tokens_per_second"])),
            number(number_text(case["pruned"]["tokens_per_second"])),
            number(percent(case["ratio"])),
            number(" to ".join(percent(end) for end in case["ratio_range"])),
        ]
        for case in latency["cases"]
    ]
    names = ("dense", final, "time, of dense", "95% range")
    what = "tokens" if report["graph"] is None else "samples"
    return table([f"{what} a second", *map(number, names)], rows)


def _memory(memory: Json | None, final: str) -> str:
    if memory is None or not memory.get("pruned"):
        return ""
    rows: list[Row] = [
        [words, number(bytes_text(memory["dense"][key])), number(bytes_text(memory["pruned"][key]))]
        for key, words in (
            ("model_bytes", "for the model"),
            ("process_bytes", "whole process"),
            ("device_bytes", "on the accelerator"),
        )
        if memory["dense"][key] is not None
    ]
    told = "Peak of a fresh process that loads the model and runs the same inputs."
    return "<h3>Peak memory</h3>" + table(["", number("dense"), number(final)], rows, told)


def runtimes(report: Json) -> str:
    """Who loads the artifact, and whom it makes faster."""
    rows: list[Row] = [
        [
            f"{entry['name']} {entry['version']}".strip(),
            entry["loads"],
            Cell(entry["faster"], "good" if entry["faster"] == "yes" else ""),
            "in this job" if entry["checked"] else "no",
            Cell(entry["note"], "wide"),
        ]
        for entry in report["runtimes"]
    ]
    verified = report["verification"]
    told = ""
    if verified is not None:
        told = (
            "<p>A clean process loaded the artifact as users do; its outputs differ from the "
            f"evaluated ones by at most {number_text(verified['max_abs_difference'])}.</p>"
        )
    return told + table(["runtime", "loads it", "faster", "checked", "note"], rows, stack=True)


def reproducibility(report: Json) -> str:
    """Times, versions, hashes, the specification."""
    found = report["reproducibility"]
    device = found["device"]
    times: list[Row] = [[name, number(seconds_text(value))] for name, value in found["seconds"].items()]
    times.append(["all stages", number(seconds_text(found["wall_seconds"]))])
    where = f"{device.get('name', '')}, {threads_text(device.get('threads'))}" + (
        "; gone on from an earlier attempt, whose time is not counted" if found["resumed"] else ""
    )
    versions: list[Row] = [[name, Cell(value, "code")] for name, value in sorted(found["versions"].items())]
    hashes: list[Row] = [[name, Cell(value, "code")] for name, value in _hashes(found["inputs"])]
    hashes += [[entry["path"], Cell(entry["sha256"], "code")] for entry in report["artifact"]["files"]]
    specification = json.dumps(found["specification"], indent=2, ensure_ascii=False)
    stages, software = (
        table(["stage", number("time")], times, where),
        table(["software", "version"], versions),
    )
    return (
        f'<div class="plots"><div>{stages}</div><div>{software}</div></div>'
        + folded("Specification", f"<pre>{escape(specification)}</pre>")
        + folded("sha256 of inputs and artifact", table(["file", "sha256"], hashes))
    )


def _hashes(inputs: Json) -> list[tuple[str, str]]:
    found = []
    for kind, entries in inputs.items():
        if isinstance(entries, Mapping):
            found += [(f"{kind}: {name}", str(value)) for name, value in entries.items()]
    return found
