"""Options of recipes and recoveries against their JSON schemas. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from compression.errors import Fault
from compression.faults import pointer
from compression.suggestions import closest

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError


def check_options(
    given: Mapping[str, Any], schema: Mapping[str, Any], owner: str, steps: Sequence[str]
) -> list[Fault]:
    """The faults of options. `owner` is who has the options, `steps` leads to them in the specification."""
    faults: list[Fault] = []
    valid = list(schema.get("properties", {}))
    for key in given:
        if key not in valid:
            hint = closest(key, valid) if valid else "it has no options"
            faults.append(
                Fault(pointer(*steps, key), f"{owner} has no option {key[:80]!r}: {hint}.", "unknown_key")
            )
    for error in _validator(json.dumps(schema, sort_keys=True)).iter_errors(dict(given)):
        if error.validator != "additionalProperties":
            place = pointer(*steps, *error.absolute_path)
            faults.append(Fault(place, _message(error), "option_invalid"))
    return faults


def with_defaults(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The options with every one that is left out at its default, in the schema's order."""
    filled: dict[str, Any] = {}
    for name, part in schema.get("properties", {}).items():
        if name in given:
            filled[name] = given[name]
        elif "default" in part:
            filled[name] = part["default"]
    return filled


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    # Imported here because it costs a tenth of a second that most processes need not spend.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _message(error: ValidationError) -> str:
    if error.validator == "enum":
        valid = [str(item) for item in error.schema["enum"]] if isinstance(error.schema, Mapping) else []
        return f"{str(error.instance)[:80]!r} is not valid here: {closest(str(error.instance), valid)}."
    text = str(error.message)
    if len(text) > 200:
        text = f"{text[:197]}..."
    about = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    return f"{text}. {about}" if about else f"{text}."
