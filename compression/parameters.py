"""Parameters of the entries of an axis: fields of a frozen dataclass that say what they mean.

An entry (a criterion, an update, an allocation) that can be tuned is a frozen dataclass whose fields are
made by `parameter`. The registry keeps it with its defaults; `configured` gives a copy with a job's
options. Names are unique over all axes, so that a job writes them flat among its options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

E = TypeVar("E")


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type, default, bounds (as pydantic names them) and description."""

    name: str
    kind: Any
    default: Any
    description: str
    bounds: Mapping[str, float]


def parameter(default: Any, description: str, *, kind: Any = None, **bounds: float) -> Any:
    """A dataclass field with its description; `bounds` are ge, gt, le, lt; `kind` a type other than the
    default's, such as a Literal.
    """
    return field(
        default=default,
        metadata={"description": description, "kind": kind or type(default), "bounds": bounds},
    )


def parameters_of(entry: object) -> list[Parameter]:
    """The parameters of an entry, in the order of its fields."""
    if not is_dataclass(entry):
        return []
    return [
        Parameter(
            item.name,
            item.metadata["kind"],
            item.default,
            item.metadata["description"],
            item.metadata["bounds"],
        )
        for item in fields(entry)
    ]


def configured(entry: E, options: Mapping[str, Any]) -> E:
    """The entry with those of its parameters that `options` names; other options are not looked at."""
    given = {item.name: options[item.name] for item in parameters_of(entry) if item.name in options}
    return replace(entry, **given) if given else entry  # type: ignore[type-var]


def all_parameters(*registries: Iterable[object]) -> dict[str, Parameter]:
    """The parameters of all entries of some axes by name. ValueError if two differ under one name."""
    found: dict[str, Parameter] = {}
    for registry in registries:
        for entry in registry:
            for item in parameters_of(entry):
                if found.setdefault(item.name, item) != item:
                    raise ValueError(f"two entries have different parameters called {item.name!r}")
    return found
