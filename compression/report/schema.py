"""The report's JSON schema (``schema.json`` beside this file) and validation against it. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = "secateur.report/1"


class ReportInvalid(ValueError):
    """A report that its schema does not allow; the message names the place."""


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The schema as JSON data."""
    text = files("compression.report").joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(report: Mapping[str, Any]) -> None:
    """Raises ReportInvalid with the first fault and its place."""
    for fault in Draft202012Validator(load_schema()).iter_errors(report):
        place = "/".join(map(str, fault.absolute_path))
        raise ReportInvalid(f"/{place}: {fault.message}")
