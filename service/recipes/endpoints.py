"""/v1/recipes"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from service.paging import answers
from service.recipes import service
from service.recipes.schemas import RecipeList, RecipeRead

router = APIRouter(prefix="/recipes", tags=["recipes"])


@router.get("", operation_id="listRecipes", summary="List recipes", responses=answers(RecipeList))
def list_recipes() -> Response:
    """Everything that can be asked for, in one page."""
    return JSONResponse({"data": service.every(), "has_more": False, "next": None})


@router.get("/{name}", operation_id="getRecipe", summary="Read a recipe", responses=answers(RecipeRead))
def get_recipe(name: str) -> Response:
    """Its paper, its needs, and the JSON schema of its options."""
    return JSONResponse(service.read(name))
