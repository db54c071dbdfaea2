"""docs/api.md, written from the same OpenAPI document and error classes as the page at /docs.

`python -m service.ui.reference` writes it, `--check` exits 1 when the file is not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")
_TARGET = Path(__file__).resolve().parents[2] / "docs" / "api.md"
_INTRODUCTION = """# The HTTP interface

Generated from the application by `python -m service.ui.reference`; a running service shows the same, with
schemas and examples, at `/docs`, and serves the OpenAPI document at `/openapi.json`."""


def markdown(document: Mapping[str, Any], problems: Iterable[tuple[str, int, str, str]]) -> str:
    """The reference as Markdown: calls by resource with their parameters, then every kind of problem."""
    parts = [_INTRODUCTION, document["info"]["description"]]
    for tag in document["tags"]:
        parts += [f"## {tag['name']}", tag["description"], *_calls(document["paths"], tag["name"])]
    rows = "\n".join(
        f"| `{code}` | {status} | {title} | {_cell(text)} |" for code, status, title, text in problems
    )
    parts += ["## Problems", f"| code | status | title | when |\n| --- | --- | --- | --- |\n{rows}"]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _calls(paths: Mapping[str, Any], tag: str) -> Iterator[str]:
    for path, operations in paths.items():
        for method in _METHODS:
            operation = operations.get(method)
            if operation and tag in operation.get("tags", ()):
                yield f"### `{method.upper()} {path}`\n\n{operation.get('description', operation['summary'])}"
                parameters = operation.get("parameters", ())
                if parameters:
                    yield "\n".join(
                        f"- `{each['name']}` ({each['in']}): {_cell(each.get('description', ''))}"
                        for each in parameters
                    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def current() -> str:
    """The reference of this version of the application."""
    from service.app import create_app
    from service.settings import Settings
    from service.ui.endpoints import kinds

    application = create_app(Settings(auth="off", host="127.0.0.1"))
    return markdown(application.openapi(), sorted(set(kinds())))


def main(arguments: list[str]) -> int:
    """Write or check the file; the exit status."""
    text = current()
    if "--check" in arguments:
        fresh = _TARGET.exists() and _TARGET.read_text(encoding="utf-8") == text
        return 0 if fresh else 1
    _TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
