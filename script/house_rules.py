"""The rules of the house that import-linter and ruff cannot see; exits 1 with one line per breach.

Size of files and functions, SQL only in repositories, nobody but the edge commits, nothing is unpickled,
no remote code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compression", "service", "workers", "secateur")
LONGEST_FILE = 400
LONGEST_FUNCTION = 45  # lines of code: the docstring, comments and blank lines do not count
SQL_WORDS = {"select", "insert", "update", "delete", "text"}
SQL_AT_HOME = {"service/db.py", "service/tables", "migrations"}
COMMITS_AT_EDGE = {"service/db.py"}


def code_lines(source: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function that hold code."""
    body = node.body
    first = body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        body = body[1:]
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : node.end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def may_hold_sql(name: str) -> bool:
    return name.endswith("/repository.py") or any(name.startswith(place) for place in SQL_AT_HOME)


def breaches(path: Path) -> Iterator[str]:
    """Every breach in one file, as `file:line: what is wrong`."""
    name = path.relative_to(ROOT).as_posix()
    source = path.read_text(encoding="utf-8").splitlines()
    if len(source) > LONGEST_FILE:
        yield f"{name}:1: {len(source)} lines; a file stays under {LONGEST_FILE}: split it by what it does"
    for node in ast.walk(ast.parse("\n".join(source))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = code_lines(source, node)
            if length > LONGEST_FUNCTION:
                where = f"{name}:{node.lineno}"
                yield f"{where}: {node.name}() has {length} lines of code; at most {LONGEST_FUNCTION}"
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sqlalchemy":
            found = sorted(SQL_WORDS & {alias.name for alias in node.names})
            if found and not may_hold_sql(name):
                words = ", ".join(found)
                yield f"{name}:{node.lineno}: imports {words} of sqlalchemy; SQL lives in repository.py"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from call_breaches(name, node)


def call_breaches(name: str, node: ast.Call) -> Iterator[str]:
    assert isinstance(node.func, ast.Attribute)
    owner = ast.unparse(node.func.value)
    called = f"{owner}.{node.func.attr}"
    session = owner.split(".")[-1] in {"session", "connection"}
    if node.func.attr == "commit" and session and name not in COMMITS_AT_EDGE:
        yield f"{name}:{node.lineno}: {called}(): a transaction is committed at the edge, in service/db.py"
    if called in {"torch.load", "pickle.load", "pickle.loads"} and name != "compression/loading/convert.py":
        yield f"{name}:{node.lineno}: {called}: nothing uploaded is ever unpickled"
    for keyword in node.keywords:
        remote = keyword.arg == "trust_remote_code"
        if remote and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            yield f"{name}:{node.lineno}: trust_remote_code is never on"


def main() -> int:
    found = [
        line
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in breaches(path)
    ]
    print("\n".join(found) if found else "house rules: kept")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
