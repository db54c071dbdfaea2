"""What a job may choose on the axes of single weights, and what is refused before it is queued."""

from __future__ import annotations

from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.errors import SpecificationInvalid
from compression.specification import block, granularity_kind, parse
from tests.resolving import attempt, faults, inspections

LEAST = {"model": "mdl_1", "recipe": "wanda", "target": {"sparsity": 0.5}}
SINGLE = [
    name
    for name, offer in catalogue.load().recipes.items()
    if "layer" not in offer.granularities and "llama" in offer.families
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return inspections(tmp_path_factory.mktemp("models"))


def blocks(shape: str, **changes: Any) -> dict[str, Any]:
    return {"structure": {"granularity": shape}, **changes}


def allocated(name: str, sparsity: float, **options: Any) -> dict[str, Any]:
    return {"target": {"sparsity": sparsity}, "options": {"allocation": name, **options}}


def test_blocks_are_parsed() -> None:
    assert parse({**LEAST, **blocks("16x16")}).structure.granularity == "16x16"
    assert block("16x16") == (16, 16)
    assert block("1x8") == (1, 8)
    assert block("2:4") is None
    assert block(None) is None
    assert [granularity_kind(text) for text in ("16x16", "2:4", "unstructured", "layer")] == [
        "block", "n:m", "unstructured", "layer"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("granularity", "words"),
    [
        ("block", 'write rows x columns, such as "16x16"'),
        ("1x1", 'single weights are "unstructured"'),
        ("0x4", "no granularity"),
        ("16X16", "no granularity"),
        ("16x", "no granularity"),
        ("1000x1", "no granularity"),
        ("1\u0666x16", "no granularity"),
        ("16x16\n", "no granularity"),
    ],
)
def test_what_is_no_block_is_refused_with_a_hint(granularity: str, words: str) -> None:
    with pytest.raises(SpecificationInvalid) as caught:
        parse({**LEAST, **blocks(granularity)})
    (fault,) = caught.value.errors
    assert fault.pointer == "/structure/granularity"
    assert fault.code == "granularity_invalid"
    assert words in fault.message


def data_for(recipe: str) -> dict[str, Any]:
    """The calibration that a recipe needs, where it is not the usual one."""
    if "domain" not in catalogue.load().recipes[recipe].needs:
        return {}
    return {"calibration": {"dataset": "text", "domain": {"dataset": "other"}}}


def layout_for(recipe: str) -> dict[str, Any]:
    """How the result is written, where there is no default: of units in numbers of each layer's own, and of
    ranks."""
    offer = catalogue.load().recipes[recipe]
    properties = offer.options["properties"]
    own = "update" in properties and "comparison" not in properties
    own = own and (offer.data["defaults"]["allocation"] != "uniform" or "rank_multiple" in properties)
    return {"output": {"layout": "packaged"}} if own else {}


REFUSED: list[tuple[str, dict[str, Any], str, str, str]] = [
    # (model, changes, where, code, words)
    ("decoder", blocks("24x16"), "/structure/granularity", "granularity_unsupported",
     "Blocks of 24x16 do not fit model.layers.0.self_attn.q_proj.weight (32 x 32)"),
    ("decoder", blocks("32x32"), "/structure/granularity", "granularity_unsupported",
     "k_proj.weight (16 x 32)"),
    ("odd", blocks("4x8"), "/structure/granularity", "granularity_unsupported", "structure.ignore"),
    ("decoder", blocks("16x16", target={"sparsity": 0.0001}), "/target/sparsity", "target_unreachable",
     "removes no whole block of 16x16"),
    *[("decoder", blocks("2:4", options={"allocation": name}), "/options/allocation", "option_conflict",
       f"{name!r} is impossible") for name in ("owl", "global", "dlp")],
    ("encoder", {"options": {"criterion": "gblm"}}, "/options", "option_conflict", "needs a loss"),
    ("encoder", {"options": {"allocation": "ecoflap"}}, "/options", "option_conflict", "needs a loss"),
    ("encoder", {"recipe": "gblm"}, "/options", "option_conflict", "without a head"),
    ("decoder", allocated("owl", 0.96), "/target/sparsity", "target_unreachable",
     "options.minimum_density 0.05"),
    ("decoder", allocated("uniform", 0.99), "/target/sparsity", "target_unreachable",
     "options.minimum_density 0.05"),
    ("decoder", allocated("uniform", 0.5, maximum_density=0.4), "/target/sparsity", "target_unreachable",
     "options.maximum_density 0.4"),
    ("decoder", allocated("lamp", 0.5, minimum_density=0.6), "/target/sparsity", "target_unreachable",
     "at most 0.39"),
    ("decoder", allocated("erk", 0.3, maximum_density=0.5), "/target/sparsity", "target_unreachable",
     "at least 0.5"),
    ("decoder", allocated("owl", 0.5, minimum_density=0.8, maximum_density=0.2), "/target/sparsity",
     "target_unreachable", "options.minimum_density 0.8"),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"criterion": "wanda"}},
     "/calibration", "calibration_missing", "needs text"),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"allocation": "owl"}},
     "/calibration", "calibration_missing", "needs text"),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"update": ["sparsegpt"]}},
     "/calibration", "calibration_missing", "needs text"),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"token_weight": "norm"}},
     "/calibration", "calibration_missing", "needs text"),
    ("decoder", {"options": {"update": "sparsegpt"}}, "/options/update", "option_invalid", ""),
    ("decoder", {"options": {"update": ["sparsegtp"]}}, "/options/update/0", "option_invalid", "'sparsegpt'"),
    ("decoder", {"options": {"update": ["none"] * 9}}, "/options/update", "option_invalid", ""),
    ("decoder", {"options": {"owl_outlier": 1.0}}, "/options/owl_outlier", "option_invalid", ""),
    ("decoder", {"options": {"evolution_generations": 0}}, "/options/evolution_generations",
     "option_invalid", ""),
    ("decoder", {"options": {"ria_pwer": 1.0}}, "/options/ria_pwer", "unknown_key", "ria_power"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "changes", "where", "code", "words"), REFUSED, ids=str)
def test_what_is_refused(
    model: str, changes: dict[str, Any], where: str, code: str, words: str, models: dict[str, Inspection]
) -> None:
    found = {fault.pointer: fault for fault in faults(models[model], **changes)}
    assert where in found, found
    assert found[where].code == code
    assert words in found[where].message


POSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("decoder", blocks("16x16")),
    ("decoder", blocks("16x16", options={"allocation": "owl"})),
    ("decoder", blocks("1x8", recipe="random", calibration=None)),
    (
        "decoder",
        blocks("32x32", options={"minimum_density": 0.0})
        | {"structure": {"granularity": "32x32", "ignore": ["*.k_proj", "*.v_proj"]}},
    ),
    ("classifier", {"options": {"criterion": "gblm"}}),
    ("classifier", {"options": {"allocation": "ecoflap"}}),
    ("encoder", {"options": {"allocation": "distortion-dp"}}),
    ("encoder", {"options": {"criterion": "ria", "allocation": "owl", "update": ["dsnot", "least-squares"]}}),
    ("decoder", {"recipe": "lamp", "calibration": None}),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"allocation": "erk"}}),
    ("decoder", {"recipe": "magnitude", "calibration": None, "options": {"allocation": "zd"}}),
    ("decoder", {"recipe": "gblm", "calibration": None, "options": {"criterion": "magnitude"}}),
    ("decoder", allocated("owl", 0.5, minimum_density=0.5)),
    ("decoder", allocated("owl", 0.5, maximum_density=0.5)),
    ("decoder", allocated("uniform", 0.99, minimum_density=0.0)),
    ("decoder", allocated("erk", 0.25, minimum_density=0.75)),
]


@pytest.mark.parametrize(("model", "changes"), POSSIBLE, ids=str)
def test_what_is_possible(model: str, changes: dict[str, Any], models: dict[str, Inspection]) -> None:
    attempt(models[model], **changes)


@pytest.mark.parametrize("recipe", SINGLE)
def test_only_recipes_that_need_data_ask_for_it(recipe: str, models: dict[str, Inspection]) -> None:
    offer = catalogue.load().recipes[recipe]
    if "calibration" in offer.needs:
        (fault,) = [
            f
            for f in faults(models["decoder"], recipe=recipe, calibration=None, **layout_for(recipe))
            if f.pointer == "/calibration"
        ]
        assert fault.code == "calibration_missing"
    else:
        more = layout_for(recipe)
        assert attempt(models["decoder"], recipe=recipe, calibration=None, **more).calibration is None


@pytest.mark.parametrize("recipe", SINGLE)
def test_a_resolved_job_says_every_option(recipe: str, models: dict[str, Inspection]) -> None:
    properties = catalogue.load().recipes[recipe].options["properties"]
    found = attempt(models["decoder"], recipe=recipe, **data_for(recipe), **layout_for(recipe))
    assert found.options == {name: part["default"] for name, part in properties.items()}


@pytest.mark.parametrize("density", [0.05, 0.3, 0.41])
def test_what_is_accepted_can_be_met_to_the_last_weight(
    density: float, models: dict[str, Inspection]
) -> None:
    """Every weight keeps its minimum in whole numbers, so that a little less than 1 - density can go."""
    model = models["decoder"]
    sizes = [site.size for site in model.sites]
    most = sum(size - -(-round(density * 100) * size // 100) for size in sizes)
    reached = most * 10**6 // sum(sizes) / 10**6
    attempt(model, **allocated("global", reached, minimum_density=density))
    (fault,) = faults(model, **allocated("global", round(reached + 1e-4, 6), minimum_density=density))
    assert f"at most {reached} can be reached" in fault.message
