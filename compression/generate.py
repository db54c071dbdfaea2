"""What the registries say of themselves: the catalogue (JSON) and docs/methods.md. Both are generated
files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from compression.allocation import allocations
from compression.allocation.ranks import rank_allocations
from compression.allocation.structures import structure_allocations
from compression.criteria import criteria
from compression.criteria.layers import layer_criteria
from compression.criteria.ranks import rank_criteria
from compression.criteria.structures import structure_criteria
from compression.criteria.vocabulary import vocabulary_criteria
from compression.granularity import granularities
from compression.graphs.criteria import CRITERIA
from compression.graphs.schedules import SCHEDULES
from compression.recipes import recipes
from compression.recipes.base import options_schema
from compression.recipes.channels import ALLOCATIONS, UPDATES
from compression.recipes.channels import data_needs as graph_needs
from compression.recipes.ranks import rank_options
from compression.recipes.structures import structure_options
from compression.recipes.weights import data_needs, weight_options, works_on_graphs
from compression.recovery.graphs import graph_recoveries
from compression.recovery.registry import load_all
from compression.schedules import schedules
from compression.updates import updates
from compression.updates.layers import layer_updates
from compression.updates.ranks import rank_updates
from compression.updates.structures import structure_updates

VERSION = 1


def catalogue() -> dict[str, Any]:
    """Everything that a job may ask for, as plain JSON."""
    return {
        "version": VERSION,
        "recipes": [recipe.to_json() for recipe in recipes],
        "criteria": _of_weights(criteria),
        "layer_criteria": _weighed(layer_criteria),
        "layer_updates": _weighed(layer_updates),
        "structure_criteria": _of_kinds(structure_criteria),
        "vocabulary_criteria": [
            {"name": c.name, "summary": c.summary, "needs": sorted(c.needs), "arxiv": c.paper}
            for c in vocabulary_criteria
        ],
        "granularities": [
            {"name": g.name, "summary": g.summary, "pattern": g.pattern} for g in granularities
        ],
        "allocations": _of_weights(allocations),
        "updates": _of_weights(updates),
        "structure_updates": _of_kinds(structure_updates),
        "structure_allocations": _weighed(structure_allocations),
        "rank_criteria": _weighed(rank_criteria),
        "rank_updates": _weighed(rank_updates),
        "rank_allocations": _weighed(rank_allocations),
        **_of_graphs(),
        "schedules": _entries(schedules),
        "recoveries": _recoveries(load_all()),
        "graph_recoveries": _recoveries(graph_recoveries),
    }


def _of_graphs() -> dict[str, Any]:
    """The axes of graphs, with what each entry asks of a job's data."""

    def named(summaries: Mapping[str, str], axis: str) -> list[dict[str, Any]]:
        chosen = {"criterion": "random", "update": "none"}
        return [
            {"name": name, "summary": summary, "needs": sorted(graph_needs(**{**chosen, axis: name}))}
            for name, summary in summaries.items()
        ]

    schedules_named = named({one.name: one.summary for one in SCHEDULES}, "schedule")
    return {
        "graph_criteria": named({one.name: one.summary for one in CRITERIA}, "criterion"),
        "graph_updates": named(UPDATES, "update"),
        "graph_allocations": named(ALLOCATIONS, "allocation"),
        "graph_schedules": [
            {**told, "scores": one.scores, "arxiv": one.paper}
            for told, one in zip(schedules_named, SCHEDULES, strict=True)
        ],
    }


def _weighed(registry: Iterable[Any]) -> list[dict[str, Any]]:
    """Entries with what they need from the data, as jobs know it."""
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "needs": sorted(data_needs(entry.needs)),
            "arxiv": entry.paper,
        }
        for entry in registry
    ]


def _of_weights(registry: Iterable[Any]) -> list[dict[str, Any]]:
    """The same with whether they work on the weights of graphs."""
    known = {entry.name: works_on_graphs(entry.needs) for entry in registry}
    return [{**entry, "graphs": known[entry["name"]]} for entry in _weighed(registry)]


def _of_kinds(registry: Iterable[Any]) -> list[dict[str, Any]]:
    """The same with the kinds of units that they are for, and whether they give or need clusters of units."""
    more = {
        entry.name: {
            "kinds": sorted(entry.kinds),
            "clusters": hasattr(entry, "clusters") or "clusters" in entry.needs,
        }
        for entry in registry
    }
    return [{**entry, **more[entry["name"]]} for entry in _weighed(registry)]


def _recoveries(registry: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {"name": r.name, "title": r.title, "summary": r.summary, "options": options_schema(r.options)}
        for r in registry
    ]


def _entries(registry: Iterable[Any]) -> list[dict[str, str]]:
    return [{"name": entry.name, "summary": entry.summary} for entry in registry]


def catalogue_text() -> str:
    """The catalogue as the file has it."""
    return json.dumps(catalogue(), indent=2, ensure_ascii=False) + "\n"


def methods_text() -> str:
    """docs/methods.md: every recipe with its options, then every entry of every axis."""
    data = catalogue()
    lines = [
        "# Methods",
        "",
        "Generated by `python -m compression methods`; a test proves it fresh. A recipe is a composition of",
        "one entry of each axis; a job names the recipe and may override its options.",
        "",
        "## Recipes",
    ]
    for recipe in data["recipes"]:
        lines += ["", *_recipe(recipe)]
    lines += ["", *_shared(data)]
    lines += ["", "## Recovery after pruning"]
    for recovery in data["recoveries"]:
        lines += ["", f"### `{recovery['name']}`", "", recovery["summary"], *_options(recovery["options"])]
    lines += ["", "## Recovery of graphs"]
    for recovery in data["graph_recoveries"]:
        lines += [
            "",
            f"### `{recovery['name']}` of graphs",
            "",
            recovery["summary"],
            *_options(recovery["options"]),
        ]
    lines += ["", "## Axes"]
    axes = (
        "criteria", "layer_criteria", "layer_updates", "structure_criteria", "vocabulary_criteria",
        "granularities", "allocations", "updates", "structure_updates", "structure_allocations",
        "rank_criteria", "rank_updates", "rank_allocations", "graph_criteria", "graph_updates",
        "graph_allocations", "graph_schedules", "schedules",
    )  # fmt: skip
    for axis in axes:
        lines += [
            "",
            f"### {axis.replace('_', ' ').capitalize()}",
            "",
            "| name | what it does |",
            "| --- | --- |",
        ]
        for entry in data[axis]:
            lines.append(f"| `{entry['name']}` | {entry['summary']}{_arxiv(entry)}{_kinds(entry)} |")
    return "\n".join(lines) + "\n"


def _recipe(recipe: dict[str, Any]) -> list[str]:
    paper = recipe["paper"]
    lines = [f"### `{recipe['name']}`: {recipe['title']}", "", recipe["summary"], ""]
    if paper is not None:
        where = (
            f", [arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})" if paper["arxiv"] else ""
        )
        lines.append(f"- Paper: {paper['authors']}, *{paper['title']}*, {paper['venue']}{where}")
    needs = ", ".join(recipe["needs"]) or "no data"
    lines += [
        f"- Needs: {needs}",
        f"- Families: {', '.join(recipe['families'])}",
        f"- Granularity: {', '.join(recipe['granularities'])}",
        f"- Targets: {', '.join(recipe['targets'])}",
        f"- Axes: {', '.join(f'{axis} `{name}`' for axis, name in recipe['defaults'].items())}",
        *_own_options(recipe),
    ]
    return lines


def _shared(data: dict[str, Any]) -> list[str]:
    """The options that all recipes of single weights have, with the defaults of `magnitude`."""
    schema = _shared_schema(data["recipes"])
    return [
        "## Options of recipes of single weights",
        "",
        "Every axis of these recipes can be overridden, and every parameter of an entry is an option; those",
        "of entries that are not chosen do nothing. A recipe's own defaults stand with the recipe.",
        *_options(schema),
        "",
        "## Options of recipes of neurons, heads, experts and hidden channels",
        "",
        "Every layer keeps the same number of them, so that the result is a smaller checkpoint with a stock",
        "config. Sparsity is a share of the parameters of all neurons, heads or experts, biases and rows of",
        "routers too; hidden channels (the width of the residual stream, the same in all layers) own those",
        "of embeddings, norms and head too. A criterion or an update is for some kinds of units, and refused",
        "for others. Hidden channels go from decoders with RMS norms whose class reads `head_dim`; the",
        "result answers as the dense model does with zeros in their place, and heads stay as wide as before.",
        "Where one key-value head serves all query heads it stays, and query heads are removed one by one.",
        *_options(options_schema(structure_options("Shared"))),
        "",
        "## Options of recipes of ranks",
        "",
        "A weight of m rows and n columns becomes `up @ down` of rank r, which stores r (m + n) elements and",
        "makes as many multiply-accumulates for a token. Sparsity is the share of elements of these weights",
        "that go. Weights that no rank makes smaller stay as they are; `structure.ignore` names others. The",
        "result is written `packaged`, with the code that loads it; recoveries train the factors.",
        *_options(options_schema(rank_options("Shared"))),
        "",
        "## Rows of the vocabulary",
        "",
        "Sparsity is the share of rows that go. Tokens are counted over all text of `calibration.dataset`,",
        "whatever `calibration.samples` says. Special and added tokens, the alphabet (bytes or single",
        "characters) and, for every BPE token that stays, both parts of its last merge stay too; texts whose",
        "tokens all stay are the same tokens afterwards. The rows that stay are rounded up to",
        "`vocabulary_multiple`; targets by parameters or bytes round down, so that they are met. The",
        "baseline `magnitude` takes the norms of embeddings.",
    ]


def _shared_schema(recipes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    schema: dict[str, Any] = next(recipe["options"] for recipe in recipes if recipe["name"] == "magnitude")
    return schema


def _own_options(recipe: dict[str, Any]) -> list[str]:
    schema = recipe["options"]
    if schema["properties"].get("update", {}).get("type") != "array":
        return _options(schema)
    maker, kind = structure_options, "neurons, heads, experts and hidden channels"
    if "comparison" in schema["properties"]:
        maker, kind = weight_options, "single weights"
    elif "rank_multiple" in schema["properties"]:
        maker, kind = rank_options, "ranks"
    shared = options_schema(maker("Shared"))["properties"]
    own = [
        f"`{name}` `{json.dumps(option['default'])}`"
        for name, option in schema["properties"].items()
        if option["default"] != shared[name]["default"]
    ]
    return [f"- Own defaults: {', '.join(own) or 'none'}; all others: see the options of {kind} below"]


def _options(schema: dict[str, Any]) -> list[str]:
    if not schema["properties"]:
        return []
    rows = ["", "| option | default | values | what it means |", "| --- | --- | --- | --- |"]
    for name, option in schema["properties"].items():
        default = json.dumps(option["default"])
        rows.append(f"| `{name}` | `{default}` | {_values(option)} | {option['description']} |")
    return rows


def _values(option: dict[str, Any]) -> str:
    if option.get("type") == "array" and "enum" in option["items"]:
        return "list of " + ", ".join(f"`{value}`" for value in option["items"]["enum"])
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    bounds = [
        f"{sign} {option[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in option
    ]
    return f"{option.get('type', 'any')} {', '.join(bounds)}".strip()


def _kinds(entry: dict[str, Any]) -> str:
    return f" For: {', '.join(entry['kinds'])}." if "kinds" in entry else ""


def _arxiv(entry: dict[str, Any]) -> str:
    number = entry.get("arxiv")
    return f" ([arXiv {number}](https://arxiv.org/abs/{number}))" if number else ""
