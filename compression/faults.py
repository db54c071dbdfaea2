"""Faults of JSON data, each with its pointer and a message for people. No torch."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from compression.errors import Fault
from compression.suggestions import broken_text, closest

MAXIMUM_DEPTH = 32
MAXIMUM_FAULTS = 50

Steps = tuple[str | int, ...]


def pointer(*steps: str | int) -> str:
    """A JSON pointer (RFC 6901) of these steps."""
    text = "".join("/" + str(step)[:200].replace("~", "~0").replace("/", "~1") for step in steps)
    return text.encode("utf-8", "replace").decode()


def unusual(data: Any) -> list[Fault]:
    """Numbers that are not finite, strings that are no text, keys that are no strings, and nesting without
    end."""
    faults: list[Fault] = []
    stack: list[tuple[Steps, Any]] = [((), data)]
    while stack and len(faults) < 16:
        path, value = stack.pop()
        if len(path) > MAXIMUM_DEPTH:
            return [Fault(pointer(*path[:2]), f"Nested deeper than {MAXIMUM_DEPTH} levels.", "too_deep")]
        if isinstance(value, dict):
            stack.extend(
                ((*path, key if isinstance(key, str) else repr(key)), item) for key, item in value.items()
            )
            texts = [key for key in value if isinstance(key, str)]
        elif isinstance(value, (list, tuple)):
            stack.extend(((*path, index), item) for index, item in enumerate(value))
            continue
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(Fault(pointer(*path), "The number must be finite.", "number_invalid"))
            continue
        else:
            texts = [value] if isinstance(value, str) else []
        if any(_broken(text) for text in texts):
            faults.append(Fault(pointer(*path[:1]), "Holds text that is not valid Unicode.", "text_invalid"))
    return faults


def _broken(text: str) -> bool:
    return "\x00" in text or broken_text(text)


def translate(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """The faults that pydantic found when it validated `model`, at most MAXIMUM_FAULTS of them."""
    faults: dict[tuple[str, str], Fault] = {}
    for item in error.errors(include_url=False)[: 4 * MAXIMUM_FAULTS]:
        steps = tuple(step for step in item["loc"] if step != "[key]")
        fault = Fault(pointer(*steps), _message(item, steps, model), _code(item))
        faults.setdefault((fault.pointer, fault.message), fault)
    return list(faults.values())[:MAXIMUM_FAULTS]


def _code(item: Any) -> str:
    kind = str(item["type"])
    known = {"extra_forbidden": "unknown_key", "missing": "missing_key"}
    if kind in known:
        return known[kind]
    return kind if "message" in item.get("ctx", {}) else "invalid"


def _message(item: Any, steps: Steps, model: type[BaseModel]) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        valid = [
            name for part in _parts(steps[:-1], model) for name in part.model_fields if name != "holdout"
        ]
        return f"Unknown key {str(steps[-1])[:80]!r}: {closest(str(steps[-1]), valid)}."
    if kind == "missing":
        description = _description(steps, model)
        return f"{str(steps[-1])!r} is missing{': ' + description if description else ''}."
    if kind == "literal_error" and isinstance(given, str):
        valid = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
        return f"{given[:80]!r} is not valid here: {closest(given, valid)}."
    text = re.sub(r"a valid dictionary( or instance of \w+)?", "a JSON object", str(item["msg"]))
    return text if text.endswith(".") else f"{text}."


def _parts(steps: Steps, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The parts of the model that these steps lead to; none where they lead to a plain value."""
    parts = [model]
    for step in steps:
        if isinstance(step, str):
            fields = [part.model_fields[step] for part in parts if step in part.model_fields]
            parts = [candidate for field in fields for candidate in _candidates(field.annotation)]
    return parts


def _candidates(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in get_args(annotation) for part in _candidates(inner)]


def _description(steps: Steps, model: type[BaseModel]) -> str:
    fields = [part.model_fields.get(str(steps[-1])) for part in _parts(steps[:-1], model)]
    return next(((field.description or "").rstrip(".") for field in fields if field), "")
