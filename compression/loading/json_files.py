"""Reads small JSON files of strangers. No torch."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from compression.errors import ModelRejected
from compression.loading.sources import FileSource

MAXIMUM_DEPTH = 24


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
    try:
        value = json.loads(
            source.read(0, source.size).decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_constant
        )
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
    if _depth(value) > MAXIMUM_DEPTH:
        refuse(f"nested deeper than {MAXIMUM_DEPTH} levels")
    return value


def write_object(value: dict[str, Any]) -> bytes:
    """The bytes of a rewritten JSON file: sorted keys, two spaces, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(names) if key in names[:index])
        raise _Broken(f"holds the key {twice[:80]!r} twice")
    if any("\ud800" <= character <= "\udfff" for key in found for character in key):
        raise _Broken("holds a key that is not valid Unicode")
    for key, value in found.items():
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise _Broken(f"the value of {key[:80]!r} is not valid Unicode")
    return found


def _constant(name: str) -> NoReturn:
    raise _Broken(f"holds the number {name}, which JSON does not know")


def _depth(value: Any) -> int:
    deepest = 0
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(item, dict):
            stack.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, list):
            stack.extend((inner, depth + 1) for inner in item)
    return deepest
