"""What is refused before a job is queued, with the reason and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.errors import SpecificationInvalid
from compression.resolve import resolve
from compression.specification import parse
from tests.resolving import DATASETS, faults, inspections


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return inspections(tmp_path_factory.mktemp("models"))


LAYER = {"recipe": "layer-drop"}
LORA = {"method": "lora"}
BAD: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("decoder", {"recipe": "wnada"}, "recipe_unknown", "/recipe", "did you mean 'wanda'"),
    ("decoder", {"recipe": "auto"}, "recipe_unknown", "/recipe", "'alps'"),
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
        {"structure": {"granularity": "channel"}},
        "granularity_unsupported",
        "/structure/granularity",
        "recipes that do: attention-maps, autobot, beta-rank",
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
        {"target": {"latency": "4ms"}},
        "target_unsupported",
        "/target/latency",
        "no faster with zeros",
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
        "With options.minimum_density 0.05 a sparsity of at most 0.94",
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
        {"recovery": {"method": "batchnorm"}},
        "recovery_unknown",
        "/recovery/method",
        "there are: distillation, lora, none",
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
