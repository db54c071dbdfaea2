"""Updates, schedules, recipes and registries: the rules that hold for every entry."""

from __future__ import annotations

import json

import jsonschema
import pytest
import torch

from compression.allocation import allocations
from compression.criteria import criteria, layer_criteria
from compression.criteria.base import SiteStatistics
from compression.recipes import recipes
from compression.registry import Registry, UnknownEntry
from compression.schedules import schedules
from compression.updates import updates


@pytest.mark.parametrize("name", updates.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_updates_leave_exact_zeros_and_the_dtype(name: str, dtype: torch.dtype):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    before = weight.clone()
    result = updates[name].apply(weight, mask, SiteStatistics(torch.ones(8), 4))
    assert result.dtype == dtype
    assert result.shape == weight.shape
    assert bool((result[~mask] == 0).all())
    assert torch.equal(weight, before)


def test_no_update_keeps_every_bit():
    weight = torch.randn(6, 8).to(torch.bfloat16)
    mask = torch.rand(6, 8) > 0.5
    assert torch.equal(updates["none"].apply(weight, mask, None)[mask], weight[mask])


@pytest.mark.parametrize("name", schedules.names())
def test_schedules_rise_to_the_target(name: str):
    steps = schedules[name].steps(0.7)
    assert steps[-1] == 0.7
    assert list(steps) == sorted(steps)
    assert steps[0] > 0


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_compose_what_exists(name: str):
    recipe = recipes[name]
    criterion = recipe.axes["criterion"]
    if recipe.granularities == ("layer",):
        assert criterion in layer_criteria
    else:
        assert criterion in criteria
        assert ("calibration" in recipe.needs) == ("activations" in criteria[criterion].needs)
        allowed = recipe.to_json()["options"]["properties"]["allocation"]["enum"]
        assert set(allowed) <= set(allocations.names())
    assert recipe.axes["update"] in updates
    assert recipe.axes["schedule"] in schedules


@pytest.mark.parametrize("name", recipes.names())
def test_the_schema_of_a_recipes_options_is_valid_and_complete(name: str):
    recipe = recipes[name]
    schema = recipe.to_json()["options"]
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(recipe.to_json())
    assert schema["additionalProperties"] is False
    for option in schema["properties"].values():
        assert "default" in option
        assert option["description"].endswith(".")
    defaults = {key: option["default"] for key, option in schema["properties"].items()}
    jsonschema.validate(defaults, schema)
    assert recipe.options.model_validate(defaults) == recipe.options()


class _Entry:
    name = "apple"
    summary = "A fruit."


def test_registries_name_the_nearest_entry():
    registry: Registry[_Entry] = Registry("fruit")
    registry.register(_Entry)
    assert registry["apple"].summary == "A fruit."
    assert isinstance(registry["apple"], _Entry)
    with pytest.raises(UnknownEntry, match="did you mean 'apple'"):
        registry["aple"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(_Entry)
