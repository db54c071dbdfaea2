"""Recipes: the generated catalogue of the engine, as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compression import catalogue
from compression.suggestions import closest
from service.errors import RecipeNotFound


def every() -> Sequence[Mapping[str, Any]]:
    """All recipes in the catalogue's order."""
    recipes: Sequence[Mapping[str, Any]] = catalogue.load().data["recipes"]
    return recipes


def read(name: str) -> Mapping[str, Any]:
    """One recipe; raises RecipeNotFound, which names the nearest one."""
    recipes = {recipe["name"]: recipe for recipe in every()}
    if name not in recipes:
        raise RecipeNotFound(f"there is no recipe {name[:80]!r}; {closest(name, recipes)}")
    return recipes[name]
