"""The report as one self-contained HTML page: no script, font or image, nothing fetched. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.report import graphs, judgement, sections
from compression.report.formats import bytes_text, number_text, percent, seconds_text
from compression.report.markup import section, tile

Json = Mapping[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@lru_cache(maxsize=1)
def _style() -> str:
    return files("compression.report").joinpath("page.css").read_text(encoding="utf-8").strip()


def render(report: Json) -> str:
    """The page of a report that ``build`` made. Everything that comes from outside is escaped."""
    title = f"{report['recipe']['title'] or report['recipe']['name']}: {report['model']['architecture']}"
    parts = [
        _header(report),
        section("In plain words", sections.plain_words(report)),
        section("Before and after", sections.before_and_after(report)),
        section("Quality", judgement.quality(report)),
        section("Gates", judgement.gates(report)),
        section("What changed in its answers", judgement.damage(report)),
        section("Channels", graphs.graph(report))
        if report["granularity"] == CHANNEL
        else section("Layer by layer", sections.layers(report) + graphs.weights(report)),
        section("Recovery", sections.recovery(report)),
        section("Speed and memory, measured", sections.speed(report)),
        section("Where it runs", sections.runtimes(report)),
        section("Reproduce it", sections.reproducibility(report)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body><main>"
        f"{''.join(parts)}{_footer(report)}</main></body></html>\n"
    )


def _header(report: Json) -> str:
    summary, model = report["summary"], report["model"]
    passed = summary["gates_passed"]
    pill = ""
    if passed is not None:
        word, css = ("All gates passed", "good") if passed else ("A gate failed", "bad")
        pill = f'<p><span class="pill {css}">{word}</span></p>'
    recipe = report["recipe"]["title"] or report["recipe"]["name"]
    about = f"{model['architecture']}, {report['granularity']}, " + (
        f"recovery by {report['recovery']['method']}" if report["recovery"] else "no recovery"
    )
    return (
        f"<header><h1>{escape(str(recipe))}: compression report</h1>"
        f'<p class="lead">{escape(about)}</p>{pill}<div class="tiles">{_tiles(report)}</div></header>'
    )


def _tiles(report: Json) -> str:
    summary = report["summary"]
    target = summary["target"]
    tiles = [tile("Target reached", _achieved(target), f"asked: {target['kind']} {target['requested']}")]
    for quality, where in ((summary["quality"], ""), (summary["domain_quality"], ", domain")):
        if quality is None:
            continue
        last = quality["recovered"] if report["quality"]["final"] == "recovered" else quality["pruned"]
        tiles.append(
            tile(
                quality["metric"].replace("_", " ").capitalize() + where,
                number_text(last) if last is not None else "not finite",
                f"dense: {number_text(quality['dense'])}",
            )
        )
    for label, key, form in (
        ("Weight files", "bytes", bytes_text),
        ("Latency", "latency", seconds_text),
        ("Memory", "memory", bytes_text),
    ):
        pair = summary[key]
        if pair is not None:
            under = f"{form(pair['dense'])} → {form(pair['final'])}"
            tiles.append(tile(f"{label}, of dense", percent(pair["ratio"]), under))
    return "".join(tiles)


def _achieved(target: Json) -> str:
    value, kind = target["achieved"], target["kind"]
    if value is None:
        return "not measured"
    if kind == "sparsity":
        return percent(value)
    if kind == "layers":
        return f"{value} layers removed" if value != 1 else "1 layer removed"
    if kind == "latency":
        return seconds_text(value)
    return percent(target["ratio"])


def _footer(report: Json) -> str:
    engine = report["reproducibility"]["versions"].get("secateur", "")
    return f"<footer>Secateur {escape(engine)} · {escape(report['schema'])}</footer>"
