"""What is filled in, and what is refused before a job is queued, with the reason and what to write
instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.errors import Fault, SpecificationInvalid
from compression.loading.admission import admit_model, folder_sources
from compression.loading.dataset_files import DatasetFacts
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from tests.tiny_models import tiny_bert, tiny_llama

DATASETS = {
    "text": DatasetFacts("text", 100, 1000, 1000, None),
    "other": DatasetFacts("text", 100, 1000, 1000, None),
    "small": DatasetFacts("text", 3, 10, 10, None),
    "named": DatasetFacts("labelled", 100, 1000, 1000, ["neg", "pos"]),
    "numbered": DatasetFacts("labelled", 100, 1000, 1000, [0, 1]),
    "misnamed": DatasetFacts("labelled", 100, 1000, 1000, ["neg", "pso"]),
    "outside": DatasetFacts("labelled", 100, 1000, 1000, [0, 1, 2]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    root = tmp_path_factory.mktemp("models")

    def look(folder: Path) -> Inspection:
        return Inspection.from_json(admit_model(folder_sources(folder)).inspection)

    return {
        "decoder": look(tiny_llama(root / "a", layers=6)),
        "two": look(tiny_llama(root / "b", layers=2)),
        "one": look(tiny_llama(root / "c", layers=1)),
        "odd": look(tiny_llama(root / "d", hidden=36, ffn=60, heads=6, key_value_heads=2)),
        "mute": look(tiny_llama(root / "e", tokenizer=False)),
        "half": look(tiny_llama(root / "f", dtype="bfloat16")),
        "sixteen": look(tiny_llama(root / "g", dtype="float16")),
        "encoder": look(tiny_bert(root / "h")),
        "classifier": look(tiny_bert(root / "i", labels=["neg", "pos"])),
        "long": look(tiny_llama(root / "j", context=8192)),
        "tied": look(tiny_llama(root / "k", tied=True)),
    }


def attempt(inspection: Inspection, **changes: Any) -> JobSpecification:
    data = {
        "model": "mdl_1",
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": "text"},
    }
    data = {key: value for key, value in {**data, **changes}.items() if value is not None}
    found = resolve(parse(data), catalogue.load(), inspection, DATASETS)
    assert resolve(parse(found.to_json()), catalogue.load(), inspection, DATASETS) == found
    return found


def faults(inspection: Inspection, **changes: Any) -> list[Fault]:
    with pytest.raises(SpecificationInvalid) as caught:
        attempt(inspection, **changes)
    return caught.value.errors


def test_every_default_is_filled_in(models: dict[str, Inspection]) -> None:
    found = attempt(models["decoder"])
    assert found.structure.granularity == "unstructured"
    assert found.options == {
        "allocation": "uniform",
        "minimum_density": 0.05,
        "comparison": "row",
        "sequential": True,
    }
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


LAYER = {"recipe": "layer-drop"}
LORA = {"method": "lora"}
BAD: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("decoder", {"recipe": "wnada"}, "recipe_unknown", "/recipe", "did you mean 'wanda'"),
    ("decoder", {"recipe": "auto"}, "recipe_unknown", "/recipe", "'magnitude'"),
    ("decoder", {"calibration": None}, "calibration_missing", "/calibration", '"calibration": {"dataset"'),
    ("decoder", {"calibration": {"dataset": "nope"}}, "dataset_unknown", "/calibration/dataset", "'nope'"),
    ("mute", {}, "tokenizer_missing", "/calibration/dataset", "tokenizer.json"),
    (
        "decoder",
        {"calibration": {"dataset": "small"}},
        "dataset_too_small",
        "/evaluation/dataset",
        "3 documents",
    ),
    (
        "decoder",
        {"calibration": {"dataset": "text", "sequence_length": 129}},
        "sequence_too_long",
        "/calibration/sequence_length",
        "context is 128",
    ),
    (
        "decoder",
        {"evaluation": {"sequence_length": 999}},
        "sequence_too_long",
        "/evaluation/sequence_length",
        "context is 128",
    ),
    (
        "decoder",
        {"structure": {"granularity": "layer"}},
        "granularity_unsupported",
        "/structure/granularity",
        "layer-drop",
    ),
    (
        "decoder",
        {"structure": {"granularity": "head"}},
        "granularity_unsupported",
        "/structure/granularity",
        "no recipe",
    ),
    (
        "decoder",
        {**LAYER, "structure": {"granularity": "2:4"}},
        "granularity_unsupported",
        "/structure/granularity",
        "magnitude",
    ),
    ("one", {**LAYER, "target": {"layers": 1}}, "target_unreachable", "/target/layers", "has 1 layer"),
    ("decoder", {"target": {"layers": 2}}, "target_unsupported", "/target/layers", "it offers: sparsity"),
    ("decoder", {"target": {"bytes": 0.5}}, "target_unsupported", "/target/bytes", "it offers: sparsity"),
    (
        "decoder",
        {**LAYER, "target": {"latency": "4ms"}},
        "target_unsupported",
        "/target/latency",
        "sparsity, parameters",
    ),
    (
        "decoder",
        {"structure": {"granularity": "2:4"}, "target": {"sparsity": 0.999}},
        "target_unreachable",
        "/target/sparsity",
        '"sparsity": 0.5',
    ),
    (
        "decoder",
        {"structure": {"granularity": "2:4"}, "target": {"sparsity": 0.75}},
        "target_unreachable",
        "/target/sparsity",
        'granularity "1:4"',
    ),
    (
        "odd",
        {"structure": {"granularity": "4:8"}},
        "granularity_unsupported",
        "/structure/granularity",
        "model.layers.0.self_attn.q_proj.weight (36 inputs)",
    ),
    ("decoder", {"target": {"sparsity": 1e-9}}, "target_unreachable", "/target/sparsity", "rounds to none"),
    (
        "decoder",
        {"target": {"sparsity": 0.9999999999}},
        "target_unreachable",
        "/target/sparsity",
        "rounds to all",
    ),
    (
        "decoder",
        {"options": {"allocation": "global"}, "target": {"sparsity": 0.97}},
        "target_unreachable",
        "/target/sparsity",
        "at most 0.95",
    ),
    (
        "decoder",
        {**LAYER, "target": {"layers": 6}},
        "target_unreachable",
        "/target/layers",
        "Reachable: 1 to 5",
    ),
    ("decoder", {**LAYER, "target": {"layers": 99}}, "target_unreachable", "/target/layers", "has 6 layers"),
    (
        "decoder",
        {**LAYER, "target": {"sparsity": 0.01}},
        "target_unreachable",
        "/target/sparsity",
        "rounds to none",
    ),
    (
        "decoder",
        {**LAYER, "target": {"sparsity": 0.999}},
        "target_unreachable",
        "/target/sparsity",
        "0.1667 to 0.8333",
    ),
    (
        "decoder",
        {**LAYER, "target": {"parameters": 0.01}},
        "target_unreachable",
        "/target/parameters",
        "ratios from",
    ),
    (
        "decoder",
        {**LAYER, "target": {"bytes": "1kB"}},
        "target_unreachable",
        "/target/bytes",
        "bytes and more",
    ),
    (
        "decoder",
        {**LAYER, "target": {"layers": 4}, "options": {"keep_first": 2, "keep_last": 2}},
        "target_unreachable",
        "/target/layers",
        "the first 2 and the last 2",
    ),
    (
        "decoder",
        {"options": {"alocation": "global"}},
        "unknown_key",
        "/options/alocation",
        "did you mean 'allocation'",
    ),
    (
        "decoder",
        {"options": {"allocation": "globl"}},
        "option_invalid",
        "/options/allocation",
        "did you mean 'global'",
    ),
    ("decoder", {"options": {"minimum_density": 3}}, "option_invalid", "/options/minimum_density", "maximum"),
    ("decoder", {"options": {"sequential": "yes"}}, "option_invalid", "/options/sequential", "boolean"),
    (
        "decoder",
        {"options": {"allocation": "global"}, "structure": {"granularity": "2:4"}},
        "option_conflict",
        "/options/allocation",
        "'uniform'",
    ),
    (
        "decoder",
        {"structure": {"ignore": ["*dwn*"]}},
        "pattern_matches_nothing",
        "/structure/ignore/0",
        "q_proj",
    ),
    (
        "decoder",
        {"structure": {"ignore": ["*.up_proj", "x"]}},
        "pattern_matches_nothing",
        "/structure/ignore/1",
        "'x'",
    ),
    (
        "decoder",
        {"structure": {"ignore": ["re:."]}},
        "pattern_matches_all",
        "/structure/ignore",
        "no weight to prune",
    ),
    (
        "decoder",
        {**LAYER, "target": {"layers": 1}, "structure": {"ignore": ["*"]}},
        "pattern_unsupported",
        "/structure/ignore",
        "keep_first",
    ),
    (
        "decoder",
        {"evaluation": {"metrics": ["acuracy"]}},
        "metric_unknown",
        "/evaluation/metrics/0",
        "'perplexity'",
    ),
    (
        "decoder",
        {"recipe": "magnitude", "calibration": None, "evaluation": {"metrics": ["perplexity"]}},
        "evaluation_data_missing",
        "/evaluation/metrics",
        "evaluation.dataset",
    ),
    (
        "decoder",
        {"evaluation": {"gates": [{"metric": "perplexty", "max": 1}]}},
        "metric_unknown",
        "/evaluation/gates/0/metric",
        "did you mean 'perplexity'",
    ),
    (
        "decoder",
        {"evaluation": {"measure": [], "gates": [{"metric": "latency", "max_ratio": 1}]}},
        "metric_not_measured",
        "/evaluation/gates/0/metric",
        "evaluation.measure",
    ),
    (
        "classifier",
        {"evaluation": {"gates": [{"metric": "accuracy", "min": 0.5}]}},
        "metric_not_evaluated",
        "/evaluation/gates/0/metric",
        "evaluation.dataset",
    ),
    (
        "decoder",
        {"evaluation": {"dataset": "text", "holdout": False}},
        "holdout_conflict",
        "/evaluation/holdout",
        "fifth",
    ),
    (
        "decoder",
        {"evaluation": {"dataset": "other", "holdout": True}},
        "holdout_conflict",
        "/evaluation/holdout",
        "own",
    ),
    ("classifier", {"evaluation": {"dataset": "text"}}, "labels_missing", "/evaluation/dataset", "'label'"),
    (
        "classifier",
        {"evaluation": {"dataset": "misnamed"}},
        "labels_unknown",
        "/evaluation/dataset",
        "did you mean 'pos'",
    ),
    ("classifier", {"evaluation": {"dataset": "outside"}}, "labels_unknown", "/evaluation/dataset", "0 to 1"),
    (
        "decoder",
        {"recipe": "magnitude", "calibration": None, "recovery": LORA},
        "recovery_data_missing",
        "/recovery/dataset",
        "recovery.dataset",
    ),
    (
        "decoder",
        {"recovery": {**LORA, "options": {"rnk": 3}}},
        "unknown_key",
        "/recovery/options/rnk",
        "did you mean 'rank'",
    ),
    (
        "decoder",
        {"recovery": {**LORA, "options": {"rank": 0}}},
        "option_invalid",
        "/recovery/options/rank",
        "minimum",
    ),
    (
        "decoder",
        {"recovery": {"options": {"rank": 3}}},
        "unknown_key",
        "/recovery/options/rank",
        "no options",
    ),
    (
        "encoder",
        {"recovery": {**LORA, "options": {"loss": "task"}}},
        "option_conflict",
        "/recovery/options/loss",
        "distillation",
    ),
    (
        "classifier",
        {"recovery": {**LORA, "options": {"loss": "task"}}},
        "labels_missing",
        "/recovery/options/loss",
        "labels",
    ),
]


@pytest.mark.parametrize(("model", "changes", "code", "where", "words"), BAD, ids=str)
def test_what_is_refused(
    model: str, changes: dict[str, Any], code: str, where: str, words: str, models: dict[str, Inspection]
) -> None:
    found = {fault.pointer: fault for fault in faults(models[model], **changes)}
    assert where in found, found
    assert found[where].code == code
    assert words in found[where].message
    assert found[where].message.endswith(".")


def test_a_family_that_a_recipe_does_not_cover(models: dict[str, Inspection]) -> None:
    data = dict(catalogue.load().data)
    data["recipes"] = [
        {**item, "families": ["llama"]} if item["name"] == "wanda" else item for item in data["recipes"]
    ]
    spec = parse(
        {"model": "m", "recipe": "wanda", "target": {"sparsity": 0.5}, "calibration": {"dataset": "text"}}
    )
    with pytest.raises(SpecificationInvalid, match=r"recipes for this model: .*magnitude"):
        resolve(spec, catalogue.from_data(data), models["encoder"], DATASETS)


def test_several_faults_at_once(models: dict[str, Inspection]) -> None:
    found = faults(
        models["decoder"],
        options={"x": 1},
        structure={"ignore": ["nothing"]},
        evaluation={"metrics": ["accuracy"]},
        recovery={"method": "lora", "options": {"rank": -1}},
    )
    assert {fault.pointer for fault in found} == {
        "/options/x", "/structure/ignore/0", "/evaluation/metrics/0", "/recovery/options/rank"
    }  # fmt: skip


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
