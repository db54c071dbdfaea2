"""A paper or a habit as a named composition of the axes. One file a recipe."""

from __future__ import annotations

from compression.recipes.base import Recipe
from compression.registry import Registry, discover

recipes: Registry[Recipe] = Registry("recipe")

discover(__name__, __path__)
