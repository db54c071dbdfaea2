"""Reads small JSON files of strangers. No torch."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from compression.errors import ModelRejected
from compression.loading.sources import FileSource
from compression.suggestions import broken_text

MAXIMUM_DEPTH = 24
# An empty list takes twenty times its text in memory, so the bytes of a file alone do not bound it.
MAXIMUM_PARTS = 200_000


class _Broken(ValueError):
    pass


def read_object(source: FileSource, file: str, maximum: int, error: type[ModelRejected]) -> dict[str, Any]:
    """The JSON object in a file of at most `maximum` bytes: UTF-8, no key twice, numbers finite, not too
    deep.

    Raises `error` (a kind of ModelRejected) that says what is wrong and where.
    """

    def refuse(what: str) -> NoReturn:
        raise error(f"{file}: {what}.", pointer=file)

    if source.size > maximum:
        refuse(f"the file has {source.size:,} bytes, more than the {maximum:,} allowed")
    data = source.read(0, source.size)
    if data.count(b"[") + data.count(b"{") > MAXIMUM_PARTS or data.count(b",") > 5 * MAXIMUM_PARTS:
        refuse(f"more than {MAXIMUM_PARTS:,} lists and objects, or five times as many values")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_constant)
    except UnicodeDecodeError as problem:
        refuse(f"not UTF-8 text (byte {problem.start})")
    except RecursionError:
        refuse("nested too deeply")
    except _Broken as problem:
        refuse(str(problem))
    except json.JSONDecodeError as problem:
        refuse(f"not valid JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}")
    except ValueError as problem:
        refuse(f"not valid JSON: {str(problem)[:120]}")
    if not isinstance(value, dict):
        refuse("must be a JSON object {...}")
    try:
        _check(value)
    except _Broken as problem:
        refuse(str(problem))
    return value


def write_object(value: dict[str, Any]) -> bytes:
    """The bytes of a rewritten JSON file: sorted keys, two spaces, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Broken(f"holds the key {twice[:80]!r} twice")
    return found


def _constant(name: str) -> NoReturn:
    raise _Broken(f"holds the number {name}, which JSON does not know")


def _check(value: Any) -> None:
    """Raises _Broken for nesting that is too deep and for strings that are no text."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAXIMUM_DEPTH:
            raise _Broken(f"nested deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(item, dict):
            stack.extend((inner, depth + 1) for inner in item.values())
            stack.extend((key, depth) for key in item)
        elif isinstance(item, list):
            stack.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, str) and broken_text(item):
            raise _Broken(f"holds {item[:40]!r}, which is not valid Unicode")
