"""What is filled in when a specification is resolved."""

from __future__ import annotations

from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from tests.resolving import attempt, inspections


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return inspections(tmp_path_factory.mktemp("models"))


def test_every_default_is_filled_in(models: dict[str, Inspection]) -> None:
    found = attempt(models["decoder"])
    assert found.structure.granularity == "unstructured"
    axes = {
        "criterion": "wanda",
        "allocation": "uniform",
        "update": [],
        "comparison": "row",
        "minimum_density": 0.05,
        "maximum_density": 1.0,
        "sequential": True,
        "token_weight": "none",
        "gradient": "exact",
        "gradient_sequences": 64,
        "gradient_directions": 32,
    }
    assert {name: found.options[name] for name in axes} == axes
    assert found.options.keys() == catalogue.load().recipes["wanda"].options["properties"].keys()
    assert found.calibration is not None
    assert found.calibration.sequence_length == 128
    assert found.evaluation.dataset == "text"
    assert found.evaluation.holdout is True
    assert found.evaluation.sequence_length == 128
    assert found.evaluation.metrics == ["perplexity"]
    assert found.output.dtype == "float32"
    assert found.recovery.method == "none"


def test_defaults_suit_the_model(models: dict[str, Inspection]) -> None:
    assert attempt(models["long"]).evaluation.sequence_length == 2048
    assert attempt(models["encoder"]).evaluation.sequence_length == 64
    assert attempt(models["encoder"]).evaluation.metrics == ["embedding_cosine"]
    assert attempt(models["half"]).output.dtype == "bfloat16"
    assert attempt(models["sixteen"]).output.dtype is None
    assert attempt(models["decoder"], output={"dtype": "bfloat16"}).output.dtype == "bfloat16"


def test_recoveries_get_their_data_and_options(models: dict[str, Inspection]) -> None:
    found = attempt(models["decoder"], recovery={"method": "lora", "options": {"rank": 4}})
    assert found.recovery.dataset == "text"
    assert found.recovery.options["rank"] == 4
    assert found.recovery.options.keys() == catalogue.load().recoveries["lora"]["properties"].keys()
    assert found.recovery.budget.steps == 200


def test_when_text_is_held_out(models: dict[str, Inspection]) -> None:
    model = models["decoder"]
    assert attempt(model, evaluation={"dataset": "text"}).evaluation.holdout is True
    assert attempt(model, evaluation={"dataset": "other"}).evaluation.holdout is False
    learned = {"method": "lora", "dataset": "other"}
    assert attempt(model, evaluation={"dataset": "other"}, recovery=learned).evaluation.holdout is True
    assert (
        attempt(model, recipe="magnitude", calibration=None, recovery=learned).evaluation.dataset == "other"
    )
    silent = attempt(model, recipe="magnitude", calibration=None)
    assert (silent.evaluation.dataset, silent.evaluation.holdout, silent.evaluation.metrics) == (
        None,
        False,
        [],
    )


def test_a_classifier_judges_itself_by_labels_only(models: dict[str, Inspection]) -> None:
    model = models["classifier"]
    assert attempt(model).evaluation.dataset is None
    assert attempt(model, calibration={"dataset": "named"}).evaluation.metrics == ["accuracy"]
    assert attempt(model, evaluation={"dataset": "numbered"}).evaluation.metrics == ["accuracy"]
    assert attempt(models["encoder"], evaluation={"dataset": "named"}).evaluation.metrics == [
        "embedding_cosine"
    ]


@pytest.mark.parametrize(
    ("layers", "removed", "given", "ends"),
    [
        ("decoder", 2, {}, (1, 1)),
        ("decoder", 5, {}, (1, 0)),
        ("decoder", 2, {"keep_first": 3}, (3, 1)),
        ("decoder", 3, {"keep_first": 3}, (3, 0)),
        ("decoder", 1, {"keep_last": 5}, (0, 5)),
        ("decoder", 2, {"keep_first": 0, "keep_last": 0}, (0, 0)),
        ("two", 1, {}, (1, 0)),
    ],
)
def test_ends_are_kept_where_possible(
    layers: str, removed: int, given: dict[str, int], ends: tuple[int, int], models: dict[str, Inspection]
) -> None:
    found = attempt(models[layers], recipe="layer-drop", target={"layers": removed}, options=given)
    assert (found.options["keep_first"], found.options["keep_last"]) == ends


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("decoder", {"structure": {"granularity": "2:4"}}),
    ("decoder", {"structure": {"granularity": "1:4"}, "target": {"sparsity": 0.75}}),
    ("encoder", {"structure": {"granularity": "4:8"}}),
    ("odd", {"structure": {"granularity": "1:3"}, "target": {"sparsity": 0.667}}),
    ("decoder", {"structure": {"ignore": ["lm_head", "*.down_proj", r"re:layers\.0\."]}}),
    ("tied", {"structure": {"ignore": ["lm_head"]}}),
    ("decoder", {"recipe": "random", "calibration": None}),
    ("decoder", {"options": {"allocation": "global", "minimum_density": 0.5}}),
    ("decoder", {"recipe": "layer-drop", "target": {"sparsity": 0.34}}),
    ("decoder", {"recipe": "layer-drop", "target": {"macs": 0.7}}),
    ("encoder", {"recipe": "layer-drop", "target": {"layers": 1}}),
    (
        "decoder",
        {
            "evaluation": {
                "gates": [{"metric": "perplexity", "max_ratio": 1.2}, {"metric": "bytes", "max": 5}]
            }
        },
    ),
    ("one", {}),
    ("mute", {"recipe": "magnitude", "calibration": None}),
]


@pytest.mark.parametrize(("model", "changes"), GOOD, ids=str)
def test_what_is_possible(model: str, changes: dict[str, Any], models: dict[str, Inspection]) -> None:
    attempt(models[model], **changes)


def test_the_catalogue_is_complete() -> None:
    found = catalogue.load()
    assert {"random", "magnitude", "wanda", "layer-drop"} <= found.recipes.keys()
    assert {"none", "lora", "distillation"} <= found.recoveries.keys()
    for offer in found.recipes.values():
        assert offer.summary
        assert offer.options["additionalProperties"] is False
        for name, part in offer.options["properties"].items():
            assert "default" in part, name
            assert part["description"], name
    with pytest.raises(ValueError, match="version"):
        catalogue.from_data({"version": 2})


def test_metrics_are_those_of_the_evaluation() -> None:
    from compression.evaluation.quality import METRICS
    from compression.resolving import data

    assert {task: tuple(metrics) for task, metrics in METRICS.items()} == data.METRICS


def test_quality_is_measured_on_a_stated_number_of_samples(models: dict[str, Inspection]) -> None:
    assert attempt(models["decoder"]).evaluation.samples == 512
    assert attempt(models["encoder"]).evaluation.samples == 2048
    assert attempt(models["decoder"], evaluation={"samples": 7}).evaluation.samples == 7
