"""What can be asked for: the recipes and the entries of every axis, as data. No torch.

`catalogue.json` is generated from the engine's registries by `python -m compression catalogue`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("catalogue.json")
VERSION = 1


@dataclass(frozen=True)
class Offer:
    """One recipe as the catalogue lists it. `options` is the JSON schema (draft 2020-12) of its options."""

    name: str
    title: str
    summary: str
    needs: frozenset[str]
    families: tuple[str, ...]
    granularities: tuple[str, ...]
    targets: tuple[str, ...]
    options: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """All that can be asked for; `data` is the whole catalogue as JSON data."""

    data: Mapping[str, Any]

    @property
    def recipes(self) -> dict[str, Offer]:
        """Recipes by name."""
        return {item["name"]: _offer(item) for item in self.data["recipes"]}

    @property
    def recoveries(self) -> dict[str, Mapping[str, Any]]:
        """The options schema of every recovery by name."""
        return {item["name"]: item.get("options") or {} for item in self.data["recoveries"]}

    @property
    def graph_recoveries(self) -> dict[str, Mapping[str, Any]]:
        """The same of the recoveries of graphs."""
        return {item["name"]: item.get("options") or {} for item in self.data["graph_recoveries"]}

    def names(self, axis: str) -> list[str]:
        """Names of the entries of an axis, such as "criteria" or "allocations"."""
        entries: Sequence[Mapping[str, Any]] = self.data.get(axis, ())
        return [str(item["name"]) for item in entries]


def from_data(data: Mapping[str, Any]) -> Catalogue:
    """A catalogue from JSON data. Raises ValueError for another version of the format."""
    if data.get("version") != VERSION:
        raise ValueError(f"the catalogue has version {data.get('version')!r}, but {VERSION} is needed")
    return Catalogue(data)


@lru_cache(maxsize=1)
def load() -> Catalogue:
    """The catalogue of this installation."""
    return from_data(json.loads(PATH.read_text(encoding="utf-8")))


def _offer(item: Mapping[str, Any]) -> Offer:
    return Offer(
        name=item["name"],
        title=item["title"],
        summary=item["summary"],
        needs=frozenset(item["needs"]),
        families=tuple(item["families"]),
        granularities=tuple(item["granularities"]),
        targets=tuple(item["targets"]),
        options=item["options"],
        data=item,
    )
