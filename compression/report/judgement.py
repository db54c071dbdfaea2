"""The sections of the HTML page that say how good the result is: quality, gates, damage. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.report import plots
from compression.report.formats import number_text, percent, signed_percent
from compression.report.markup import Cell, figure, number, table

Json = Mapping[str, Any]
Row = list[Cell | str]


def _states(report: Json) -> list[str]:
    return ["dense", "pruned"] + (["recovered"] if report["quality"]["final"] == "recovered" else [])


def quality(report: Json) -> str:
    """Each metric before pruning, after pruning and after recovery, with the baselines."""
    found, states = report["quality"], _states(report)
    if found["headline"] is None:
        return "<p>The job had no evaluation data, so nothing is known about the quality of the result.</p>"
    names = sorted(
        {name for state in states for name in found[state] or {}}, key=lambda n: (n != found["headline"], n)
    )
    values = [(state, (found[state] or {}).get(found["headline"])) for state in states]
    title = found["headline"].replace("_", " ").capitalize()
    direction = "lower is better" if found["headline"] in found["lower_is_better"] else "higher is better"
    plot = figure(
        f"{title} ({direction})",
        plots.grouped_bars(title, [("", values, number_text)]),
        _evaluated(report),
        states,
    )
    rows = _rows(found, names, states, ", general text" if found["domain"] else "")
    if found["domain"]:
        rows += _rows(found["domain"], names, states, ", domain")
    numbers = table(["metric", *(number(state) for state in states)], rows)
    others = _baselines(report, names)
    return f'<div class="plots">{plot}<div>{numbers}{others}</div></div>'


def _rows(found: Json, names: list[str], states: list[str], where: str) -> list[Row]:
    return [
        [
            name.replace("_", " ") + where,
            *(number(_known((found[state] or {}).get(name))) for state in states),
        ]
        for name in names
    ]


def _known(value: float | None) -> str:
    return "not finite" if value is None else number_text(value)


def _evaluated(report: Json) -> str:
    quality, data = report["quality"], report["data"]
    told = _amount(data.get("evaluation") or {}, quality["counts"] or {})
    if not quality["domain"]:
        return f"Evaluated on {told}." if told else ""
    domain = _amount(data.get("domain_evaluation") or {}, quality["domain"]["counts"] or {})
    return f"General text: {told}; domain: {domain}. The plot shows the general text."


def _amount(facts: Json, counts: Json) -> str:
    words = ("documents", "sequences", "tokens", "images")
    pieces = [f"{facts[name]:,} {name}" for name in words if facts.get(name)]
    if not pieces:
        pieces = [f"{counts[name]:,} {name}" for name in words if counts.get(name)]
    return ", ".join(pieces)


def _baselines(report: Json, names: list[str]) -> str:
    found = report["quality"]
    if not report["baselines"]:
        return ""
    own: list[Cell | str] = [f"this job ({report['recipe']['name']}), pruned"]
    told = "<h3>Baselines at the same target, without recovery</h3>"
    general = [own + _cells(found["pruned"], names)]
    general += [[entry["name"], *_cells(entry["metrics"], names)] for entry in report["baselines"]]
    titles = [number(name.replace("_", " ")) for name in names]
    if not found["domain"]:
        return told + table(["criterion", *titles], general)
    domain = [own + _cells(found["domain"]["pruned"], names)]
    domain += [[entry["name"], *_cells(entry["domain"], names)] for entry in report["baselines"]]
    return (
        told
        + table(["criterion", *titles], general, "On general text.")
        + table(["criterion", *titles], domain, "On the data of the domain.")
    )


def _cells(metrics: Json | None, names: list[str]) -> list[Cell | str]:
    return [number(_known((metrics or {}).get(name))) for name in names]


def gates(report: Json) -> str:
    """Every gate with its verdict."""
    rows = []
    for gate in report["gates"]:
        bound = gate["bound"].replace("_", " ").replace("max", "at most").replace("min", "at least")
        limit = f"{number_text(gate['limit'])}" + (" × dense" if "ratio" in gate["bound"] else "")
        verdict = Cell("passed", "good") if gate["passed"] else Cell("failed", "bad")
        value = number_text(gate["value"]) if gate["reason"] is None else gate["reason"]
        rows.append([gate["metric"], f"{bound.replace(' ratio', '')} {limit}", number(value), verdict])
    return table(["metric", "bound", number("found"), "verdict"], rows)


def damage(report: Json) -> str:
    """Divergence from the dense model, flipped examples, classes."""
    found = report["damage"]
    states = [state for state, values in (found["divergence"] or {}).items() if values]
    flat = {state: dict(_flat(found["divergence"][state])) for state in states}
    names = list(dict.fromkeys(name for values in flat.values() for name in values))
    rows: list[Row] = [
        [name, *(number(number_text(flat[state].get(name))) for state in states)] for name in names
    ]
    domain = (report["quality"]["domain"] or {}).get("divergence") or {}
    told = "On the general text." if domain else ""
    parts = [table(["distance from the dense model", *(number(state) for state in states)], rows, told)]
    apart = {state: dict(_flat(domain.get(state) or {})) for state in states}
    names = list(dict.fromkeys(name for values in apart.values() for name in values))
    rows = [[name, *(number(number_text(apart[state].get(name))) for state in states)] for name in names]
    told = "On the data of the domain."
    parts.append(table(["distance from the dense model", *(number(state) for state in states)], rows, told))
    classes = found["classes"]
    if classes is not None:
        parts.append(
            f"<p>{classes['flipped']:,} of {classes['examples']:,} examples changed their class: "
            f"{classes['right_to_wrong']:,} from right to wrong, {classes['wrong_to_right']:,} from wrong to "
            "right.</p>"
        )
        parts.append(
            table(
                ["class", number("examples"), number("dense"), number("result"), number("change, points")],
                [
                    [
                        entry["label"],
                        number(f"{entry['examples']:,}"),
                        number(percent(entry["dense"])),
                        number(percent(entry["final"])),
                        number(signed_percent(entry["change"]), "bad" if (entry["change"] or 0) < 0 else ""),
                    ]
                    for entry in classes["classes"]
                ],
                "Share of each class's examples that are classified right.",
            )
        )
    return "".join(parts)


_WORDS = {
    "mean_kl": "mean KL divergence (nats)",
    "top1_agreement": "same most likely answer (share)",
    "max_abs_logit_difference": "largest difference of two logits",
    "positions": "positions compared",
}


def _flat(values: Json) -> list[tuple[str, float | None]]:
    found: list[tuple[str, float | None]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += [(f"{name.replace('_', ' ')}, {inner}", number) for inner, number in value.items()]
        else:
            found.append((_WORDS.get(name, name.replace("_", " ")), value))
    return found
