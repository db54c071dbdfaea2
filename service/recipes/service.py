"""Recipes: the generated catalogue of the engine, as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compression import catalogue
from compression.suggestions import closest
from service.errors import RecipeNotFound


def every() -> Sequence[dict[str, Any]]:
    """All recipes in the catalogue's order."""
    return [recipe.to_json() for recipe in catalogue.load().recipes]


def read(name: str) -> dict[str, Any]:
    """One recipe; raises RecipeNotFound, which names the nearest one."""
    recipes = {recipe["name"]: recipe for recipe in every()}
    if name not in recipes:
        raise RecipeNotFound(f"there is no recipe {name[:80]!r}; {closest(name, recipes)}")
    return recipes[name]
