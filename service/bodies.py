"""JSON bodies and query strings, read strictly: what is unknown is refused with the nearest valid name."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from compression.suggestions import closest
from service.errors import Fault, TooLarge, UnsupportedMedia
from service.problems import BodyInvalid, JsonInvalid, ParameterUnknown

DEEPEST = 32

Schema = TypeVar("Schema", bound="RequestBody")


class RequestBody(BaseModel):
    """Base of all JSON bodies: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True)
class JsonBody:
    """A JSON body: the bytes as sent (for fingerprints) and what they say."""

    raw: bytes
    data: Any


def is_json(content_type: str | None) -> bool:
    """Whether a Content-Type header announces JSON."""
    kind = (content_type or "").split(";", 1)[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read_limited(request: Request, limit: int) -> bytes:
    """The whole body of at most `limit` bytes; raises TooLarge once more are announced or seen."""
    message = f"the body is larger than the limit of {limit} bytes"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge(message)
    pieces, total = [], 0
    async for piece in request.stream():
        total += len(piece)
        if total > limit:
            raise TooLarge(message)
        pieces.append(piece)
    return b"".join(pieces)


async def json_body(request: Request) -> JsonBody:
    """The JSON body of a request.

    Raises:
        UnsupportedMedia: the content type is not JSON.
        TooLarge: more bytes than the settings allow.
        JsonInvalid: no JSON (RFC 8259: no NaN, UTF-8), a key twice, nested too deeply, NUL or half
        surrogates in a text.
    """
    if not is_json(request.headers.get("content-type")):
        given = request.headers.get("content-type")
        raise UnsupportedMedia(f"send Content-Type: application/json, not {given!r}" if given else _NO_TYPE)
    raw = await read_limited(request, request.app.state.settings.max_json_bytes)
    return JsonBody(raw, parse_json(raw))


async def optional_json_body(request: Request) -> JsonBody:
    """The JSON body of a call that needs none: an empty object when nothing was sent."""
    if request.headers.get("content-type") is None and request.headers.get("content-length", "0") == "0":
        return JsonBody(b"", {})
    return await json_body(request)


_NO_TYPE = "send Content-Type: application/json; the request has none"


def parse_json(raw: bytes) -> Any:
    """What JSON bytes say; raises JsonInvalid, see `json_body`."""
    try:
        data = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        _check_texts(data, 0)
    except UnicodeDecodeError as error:
        raise JsonInvalid(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise JsonInvalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise JsonInvalid(f"nested deeper than {DEEPEST} levels") from error
    except ValueError as error:
        raise JsonInvalid(str(error)) from error
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:100]!r} is given twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number {text[:40]} is too large")
    return number


def _check_texts(data: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if isinstance(data, str):
        # Databases keep neither, and no name or path needs them.
        if "\x00" in data or any("\ud800" <= letter <= "\udfff" for letter in data):
            raise ValueError("a text holds NUL or half of a surrogate pair")
    elif isinstance(data, dict):
        for key, value in data.items():
            _check_texts(key, depth)
            _check_texts(value, depth + 1)
    elif isinstance(data, list):
        for value in data:
            _check_texts(value, depth + 1)


def parse_body(schema: type[Schema], data: Any) -> Schema:
    """`data` as `schema`; raises BodyInvalid with a JSON pointer and a reason for every fault."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        faults = list(_faults(schema, error))
        raise BodyInvalid(
            "; ".join(f"{f.pointer or '/'}: {f.message}" for f in faults), errors=faults
        ) from None


def _faults(schema: type[BaseModel], error: ValidationError) -> Iterator[Fault]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        location = fault["loc"]
        pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
        if fault["type"] == "extra_forbidden":
            name = str(location[-1])
            message = f"unknown key {name!r}; {closest(name, _keys_at(schema, location[:-1]))}"
            yield Fault(pointer, message, "unknown_key")
        else:
            yield Fault(pointer, fault["msg"], fault["type"])


def _keys_at(schema: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys that the object at `location` inside `schema` may have."""
    for part in location:
        # A position in a list leads to what the list holds, which the step before has found.
        if isinstance(part, str) and _is_model(schema) and part in schema.model_fields:
            kind = schema.model_fields[part].annotation
            schema = next((inner for inner in typing.get_args(kind) if _is_model(inner)), kind)
    return list(schema.model_fields) if _is_model(schema) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


async def known_parameters(request: Request) -> None:
    """Dependency of every call: refuses query parameters that the call does not take (ParameterUnknown)."""
    if not request.url.query:
        return
    names: Mapping[Any, frozenset[str]] = request.app.state.query_names
    known = names.get(request.scope["endpoint"], frozenset())
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            message = f"unknown query parameter {name[:100]!r}; {closest(name, known)}"
            raise ParameterUnknown(
                message, errors=[Fault(f"/query/{name[:100]}", message, "unknown_parameter")]
            )
        if given.count(name) > 1:
            message = f"query parameter {name!r} is given twice"
            raise ParameterUnknown(message, errors=[Fault(f"/query/{name}", message, "doubled_parameter")])
