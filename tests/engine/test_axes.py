"""Schedules, recipes, parameters and registries: the rules that hold for every entry."""

from __future__ import annotations

import json
import operator
import re
from dataclasses import dataclass, fields
from typing import Any, get_args

import jsonschema
import pytest

from compression.allocation import allocations
from compression.allocation.base import EVIDENCE
from compression.allocation.ranks import rank_allocations
from compression.allocation.structures import structure_allocations
from compression.anatomy.families import family_of
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.varied import PACKAGED
from compression.criteria import criteria
from compression.criteria.base import NEEDS
from compression.criteria.layers import layer_criteria
from compression.criteria.ranks import rank_criteria
from compression.criteria.structures import structure_criteria
from compression.criteria.vocabulary import vocabulary_criteria
from compression.cutting import PruneSettings
from compression.gradients import KINDS
from compression.granularity import granularities
from compression.granularity.base import Pattern
from compression.graphs.criteria import CRITERIA as GROUP_CRITERIA
from compression.graphs.schedules import SCHEDULES as GRAPH_SCHEDULES
from compression.parameters import Parameter, all_parameters, configured, parameter, parameters_of
from compression.recipes import recipes
from compression.recipes.base import Recipe
from compression.recipes.weights import data_needs, weight_options
from compression.registry import Registry, UnknownEntry
from compression.schedules import schedules
from compression.updates import updates
from compression.updates.layers import layer_updates
from compression.updates.ranks import rank_updates
from compression.updates.structures import structure_updates


@pytest.mark.parametrize("name", schedules.names())
def test_schedules_rise_to_the_target(name: str):
    steps = schedules[name].steps(0.7)
    assert steps[-1] == 0.7
    assert list(steps) == sorted(steps)
    assert steps[0] > 0


DATA = {
    "activations": {"calibration"}, "means": {"calibration"}, "hessian": {"calibration"},
    "magnitudes": {"calibration"},
    "influence": {"calibration"}, "divergence": {"calibration"}, "slope": {"calibration", "loss"},
    "loss": {"calibration", "loss"},
    "scores": set(), "weights": set(),
    **{f"gradient.{kind}": {"calibration", "gradients", "loss"} for kind in KINDS},
    "domain.gradient.mean": {"calibration", "domain", "gradients", "loss"},
    "domain.gradient.square": {"calibration", "domain", "gradients", "loss"},
}  # fmt: skip


def _data(*entries) -> set[str]:
    return set().union(*(DATA[need] for entry in entries for need in entry.needs))


def _composes_structures(recipe: Recipe) -> None:
    chosen: Any = recipe.options()
    measured = ("means", "variances", "magnitudes", "lengths", "routing", "expert.norms", "expert.products")
    measured += ("energies",)
    needs = {name: {"calibration"} for name in measured} | DATA
    needs["mask.square"] = needs["gradient.output"] = needs["gradient.mean"]
    needs["unit.loss"] = {"calibration", "loss"}
    needs |= {f"unit.{name}": {"calibration"} for name in ("influence", "divergence")} | {
        "unit.scores": set()
    }
    found: list[Any] = [structure_criteria[chosen.criterion]]
    found += [structure_updates[name] for name in chosen.update]
    asked = [*found, structure_allocations[chosen.allocation]]
    assert recipe.needs == set().union(*(needs[need] for entry in asked for need in entry.needs))
    assert set(recipe.granularities) <= set(granularities.names())
    properties = recipe.to_json()["options"]["properties"]
    assert properties["criterion"]["enum"] == structure_criteria.names()
    assert properties["update"]["items"]["enum"] == structure_updates.names()
    assert "bloom" not in recipe.families
    equal, parts = chosen.allocation == "uniform", set(recipe.granularities)
    assert ("moe" in recipe.families) == equal
    assert ("t5" in recipe.families) == (equal and bool(parts & {"neuron", "head", "neuron+head"}))
    assert ("swin" in recipe.families) == (equal and "neuron" in parts)
    kinds = {kind for one in recipe.granularities for kind in GRANULARITIES[one]}
    assert all(kinds <= entry.kinds for entry in found)


def _composes_ranks(recipe: Recipe) -> None:
    chosen: Any = recipe.options()
    updating = [rank_updates[name] for name in chosen.update]
    entries = [rank_criteria[chosen.criterion], rank_allocations[chosen.allocation], *updating]
    assert recipe.needs == _data(*entries)
    properties = recipe.to_json()["options"]["properties"]
    assert properties["criterion"]["enum"] == rank_criteria.names()
    assert properties["allocation"]["enum"] == rank_allocations.names()
    assert properties["update"]["items"]["enum"] == rank_updates.names()
    held = {family_of(architecture).name for architecture in PACKAGED}
    assert set(recipe.families) == held


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_compose_what_exists(name: str):
    recipe = recipes[name]
    graph = recipe.granularities == ("channel",)
    assert recipe.axes["schedule"] in (GRAPH_SCHEDULES if graph else schedules)
    if recipe.granularities == ("layer",):
        chosen = recipe.options()
        assert recipe.axes["criterion"] == chosen.criterion
        assert recipe.needs == _data(layer_criteria[chosen.criterion], layer_updates[chosen.update])
        assert recipe.axes["update"] == chosen.update
        return
    if recipe.granularities == ("rank",):
        _composes_ranks(recipe)
        return
    if set(GRANULARITIES) & set(recipe.granularities):
        _composes_structures(recipe)
        return
    if graph:
        needs = GROUP_CRITERIA[recipe.axes["criterion"]].needs
        looks = bool(needs) or recipe.axes["update"] not in ("none", "combination")
        looks |= GRAPH_SCHEDULES[recipe.axes["schedule"]].trains or recipe.axes["allocation"] == "floors"
        labels = {"labels"} if needs & {"gradient.sum", "gradient.group"} else set()
        assert recipe.needs == ({"calibration"} | labels if looks else set())
        assert recipe.axes["update"] == recipe.options().update
        assert recipe.families == ("graph",)
        assert recipe.axes["criterion"] == recipe.options().criterion
        schema = recipe.to_json()["options"]["properties"]["criterion"]
        assert schema["enum"] == GROUP_CRITERIA.names()
        return
    if recipe.granularities == ("vocabulary",):
        assert recipe.needs == vocabulary_criteria[recipe.axes["criterion"]].needs
        schema = recipe.to_json()["options"]["properties"]["criterion"]
        assert schema["enum"] == vocabulary_criteria.names()
        assert schema["default"] == recipe.axes["criterion"]
        assert not {"vit", "swin"} & set(recipe.families)
        return
    chosen = recipe.options()
    entries = [
        criteria[chosen.criterion], allocations[chosen.allocation], *(updates[name] for name in chosen.update)
    ]  # fmt: skip
    weighted = {"calibration"} if chosen.token_weight != "none" else set()
    assert recipe.needs == _data(*entries) | weighted
    assert recipe.axes == {
        "criterion": chosen.criterion,
        "allocation": chosen.allocation,
        "update": " + ".join(chosen.update) or "none",
        "schedule": "one-shot",
    }
    assert set(recipe.granularities) <= set(granularities.names())
    # n:m is always uniform.
    assert ("n:m" in recipe.granularities) == (chosen.allocation == "uniform")
    properties = recipe.to_json()["options"]["properties"]
    assert properties["criterion"]["enum"] == criteria.names()
    assert properties["allocation"]["enum"] == allocations.names()
    assert properties["update"]["items"]["enum"] == updates.names()


def test_every_need_means_something_for_the_data():
    assert set(DATA) == {*NEEDS, *EVIDENCE, "slope", "loss"}
    for axis in (criteria, allocations, updates):
        for entry in axis:
            assert data_needs(entry.needs) == _data(entry), entry.name


def test_settings_ask_for_what_criterion_and_updates_need():
    settings = PruneSettings("gblm", Pattern("unstructured"), 1, update=("sparsegpt", "bias-compensation"))
    assert settings.needs == {"activations", "gradient.square", "hessian", "means"}
    assert settings.gradients == ("square",)
    assert settings.unit == 1
    assert [entry.name for entry in settings.chain()] == ["sparsegpt", "bias-compensation"]
    assert PruneSettings("magnitude", Pattern("block", shape=(4, 8)), 32).unit == 32
    tuned = PruneSettings("ria", Pattern("unstructured"), 1, parameters={"ria_power": 1.0, "owl_reach": 0.1})
    assert tuned.scorer().ria_power == 1.0
    assert criteria["ria"].ria_power == 0.5


# -- parameters

ENTRIES = [entry for axis in (criteria, allocations, updates) for entry in axis]
OTHERS = [entry for axis in (rank_criteria, rank_allocations, rank_updates) for entry in axis]
PARAMETERS = [(entry.name, item) for entry in ENTRIES for item in parameters_of(entry)]
DESCRIBED = [*PARAMETERS, *((entry.name, item) for entry in OTHERS for item in parameters_of(entry))]


@pytest.mark.parametrize(("entry", "item"), DESCRIBED, ids=lambda value: getattr(value, "name", value))
def test_every_parameter_is_described_and_its_default_is_allowed(entry: str, item: Parameter):
    assert re.fullmatch(r"[a-z][a-z0-9_]+", item.name)
    assert re.fullmatch(r"[A-Z].{10,}[^.]\.", item.description)
    assert set(item.bounds) <= {"ge", "gt", "le", "lt"}
    signs = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    assert all(signs[sign](item.default, bound) for sign, bound in item.bounds.items())
    if item.kind in (int, float):
        assert type(item.default) is item.kind
        assert set(item.bounds) & {"ge", "gt"}
        assert set(item.bounds) & {"le", "lt"}
    else:
        assert item.kind is bool or item.default in get_args(item.kind)


def test_parameters_that_share_a_name_are_the_same():
    named = all_parameters(criteria, allocations, updates)
    assert set(named) == {item.name for _, item in PARAMETERS}
    settings = {item.name for item in fields(PruneSettings)}
    assert not settings & set(named)
    options = set(recipes["wanda"].options.model_fields)
    assert options == set(named) | settings - {"pattern", "remove_total", "seed", "parameters"}

    @dataclass(frozen=True)
    class Other:
        ria_power: float = parameter(0.25, "Something else.")

    with pytest.raises(ValueError, match="'ria_power'"):
        all_parameters(criteria, [Other()])


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if parameters_of(entry)], ids=lambda e: e.name)
def test_options_configure_a_copy(entry):
    first = parameters_of(entry)[0]
    changed = configured(entry, {first.name: "changed", "unknown": 1})
    assert type(changed) is type(entry)
    assert getattr(changed, first.name) == "changed"
    assert getattr(entry, first.name) == first.default
    assert configured(entry, {"unknown": 1}) is entry


def test_defaults_of_a_recipe_are_checked():
    options = weight_options("Mine", criterion="wanda", update=("sparsegpt",))
    assert options().update == ["sparsegpt"]
    assert weight_options("Yours")().criterion == "magnitude"
    with pytest.raises(ValueError, match="'criterium' is no option"):
        weight_options("Mine", criterium="wanda")


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
