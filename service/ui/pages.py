"""The pages of the service itself: each in one piece, without scripts, with nothing from another host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from service.version import VERSION

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_METHODS = ("get", "post", "put", "patch", "delete")


@cache
def _style() -> str:
    return resources.files("service.ui").joinpath("style.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """A whole HTML page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_style()}</style></head><body>{body}</body></html>"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; cells are HTML."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


_FIRST_STEPS = """curl -F name=mine -F files=@config.json -F files=@model.safetensors {base}/v1/models
curl -F name=text -F files=@text.jsonl {base}/v1/datasets
curl -H 'Content-Type: application/json' {base}/v1/jobs -d '{{
  "model": "mdl_…", "recipe": "wanda", "target": {{"sparsity": 0.5}}, "calibration": {{"dataset": "dst_…"}}}}'
curl '{base}/v1/jobs/job_…?wait=30'
curl -H 'Accept: text/html' {base}/v1/jobs/job_…/report > report.html
curl {base}/v1/artifacts/art_…/archive | tar x"""


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}"><code>{escape(text)}</code></a>'


def landing(base: str, recipes: Iterable[Mapping[str, Any]]) -> str:
    """The page at `/`: what this is, where to go, what can be asked for."""
    rows = [
        (
            _link(f"/v1/recipes/{recipe['name']}", str(recipe["name"])),
            escape(str(recipe["summary"])),
            escape(", ".join(recipe["granularities"])),
            escape(", ".join(recipe["needs"]) or "nothing"),
        )
        for recipe in recipes
    ]
    body = (
        f'<h1>Secateur <span class="soft">{escape(VERSION)}</span></h1>'
        "<p>Model compression as a service: bring a trained model and a target, "
        "get a smaller one with an honest report.</p>"
        '<nav><a href="/docs">Interface</a><a href="/openapi.json">OpenAPI</a>'
        '<a href="/v1/recipes">Recipes</a>'
        '<a href="/readyz">Health</a><a href="/metrics">Metrics</a></nav>'
        f"<h2>First steps</h2><pre>{escape(_FIRST_STEPS.format(base=base))}</pre>"
        "<p>Or from Python: <code>from secateur import Client</code>; or on a command line: "
        "<code>secateur compress PATH --recipe wanda --sparsity 0.5 --calibration FILE --out DIR</code>.</p>"
        f"<h2>Recipes</h2>{table(('name', 'what it does', 'granularity', 'needs'), rows)}"
    )
    return page("Secateur", body)


def documentation(document: Mapping[str, Any], problems: Iterable[tuple[str, int, str, str]]) -> str:
    """The page at `/docs`: every call of an OpenAPI document, and every kind of problem.

    Args:
        problems: (code, status, title, description) of each kind.
    """
    parts = [
        f'<h1>Secateur <span class="soft">{escape(VERSION)}</span></h1>',
        *(f"<p>{escape(paragraph)}</p>" for paragraph in document["info"]["description"].split("\n\n")),
        '<nav><a href="/">Start</a><a href="/openapi.json">OpenAPI document</a>'
        '<a href="#problems">Problems</a></nav>',
    ]
    for tag in document["tags"]:
        parts.append(
            f'<h2 id="{escape(tag["name"])}">{escape(tag["name"])}</h2><p>{escape(tag["description"])}</p>'
        )
        for path, operations in document["paths"].items():
            for method in _METHODS:
                operation = operations.get(method)
                if operation and tag["name"] in operation.get("tags", ()):
                    parts.append(_operation(path, method, operation))
    rows = [
        (f'<code id="problem-{escape(code)}">{escape(code)}</code>', str(status), escape(title), escape(text))
        for code, status, title, text in problems
    ]
    parts.append(f'<h2 id="problems">Problems</h2>{table(("code", "status", "title", "when"), rows)}')
    parts.append(f'<h2 id="schemas">Schemas</h2>{_schemas(document["components"]["schemas"])}')
    return page("Secateur: the interface", "".join(parts))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    inside = [f"<p>{escape(operation.get('description', ''))}</p>"]
    parameters = [
        (f"<code>{escape(each['name'])}</code>", escape(each["in"]), escape(each.get("description", "")))
        for each in operation.get("parameters", ())
    ]
    if parameters:
        inside.append(table(("parameter", "in", "meaning"), parameters))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        inside.append(f"<p>Body: <code>{escape(kind)}</code>{_schema_link(content.get('schema', {}))}</p>")
        inside.append(_example(content))
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            if status != "default":
                link = _schema_link(content.get("schema", {}))
                inside.append(
                    f"<p>{escape(status)}: <code>{escape(kind)}</code>{link}</p>{_example(content)}"
                )
    return (
        f'<details id="{escape(operation["operationId"])}"><summary>'
        f'<span class="method">{method.upper()}</span> '
        f'<code>{escape(path)}</code> <span class="soft">{escape(operation["summary"])}</span></summary>'
        f"{''.join(inside)}</details>"
    )


def _schema_link(schema: Mapping[str, Any]) -> str:
    name = str(schema.get("$ref", "")).rsplit("/", 1)[-1]
    return f' <a href="#schema-{escape(name)}">{escape(name)}</a>' if name else ""


def _example(content: Mapping[str, Any]) -> str:
    if "example" not in content:
        return ""
    return f"<pre>{escape(json.dumps(content['example'], indent=2, ensure_ascii=False))}</pre>"


def _schemas(schemas: Mapping[str, Any]) -> str:
    return "".join(
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> '
        f'<span class="soft">{escape(str(schema.get("description", "")))}</span></summary>'
        f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre></details>"
        for name, schema in schemas.items()
    )
