"""A second dataset, of a domain: what is filled in, what is refused, and where the fault is."""

from __future__ import annotations

from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.specification import named_datasets, parse
from tests.resolving import attempt, faults, inspections

BOTH = {"calibration": {"dataset": "text", "domain": {"dataset": "other"}}}
D_PRUNER = {"recipe": "d-pruner", **BOTH}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return inspections(tmp_path_factory.mktemp("models"))


def test_the_domain_is_calibrated_like_the_general_text(models: dict[str, Inspection]) -> None:
    general = {"dataset": "text", "samples": 64, "sequence_length": 96, "seed": 5, "batch_size": 2}
    found = attempt(
        models["decoder"],
        recipe="d-pruner",
        calibration=general | {"domain": {"dataset": "other", "samples": 7}},
    )
    assert found.calibration is not None
    assert found.calibration.domain is not None
    assert found.calibration.domain.model_dump() == general | {"dataset": "other", "samples": 7}
    assert found.datasets() == ["text", "other"]
    assert named_datasets(found.to_json()) == {"text", "other"}


def test_both_qualities_are_judged_on_text_held_out(models: dict[str, Inspection]) -> None:
    evaluation = attempt(models["decoder"], **D_PRUNER).evaluation
    assert (evaluation.dataset, evaluation.holdout, evaluation.samples) == ("text", True, 512)
    assert evaluation.domain is not None
    assert evaluation.domain.model_dump() == {
        "dataset": "other", "samples": 512, "sequence_length": 128, "holdout": True
    }  # fmt: skip


def test_the_domain_may_have_evaluation_data_of_its_own(models: dict[str, Inspection]) -> None:
    own = {"domain": {"dataset": "small", "samples": 3, "sequence_length": 20}}
    domain = attempt(models["decoder"], evaluation=own, **D_PRUNER).evaluation.domain
    assert domain is not None
    assert domain.model_dump() == {"dataset": "small", "samples": 3, "sequence_length": 20, "holdout": False}
    # The general evaluation data becomes no domain's by the way.
    general = attempt(models["decoder"], evaluation={"dataset": "small"}, **D_PRUNER).evaluation
    assert (general.dataset, general.holdout) == ("small", False)
    assert general.domain is not None
    assert (general.domain.dataset, general.domain.holdout) == ("other", True)


@pytest.mark.parametrize("recipe", ["magnitude", "wanda", "sparsegpt", "layer-drop"])
def test_every_recipe_can_be_judged_on_a_domain(recipe: str, models: dict[str, Inspection]) -> None:
    target = {"layers": 2} if recipe == "layer-drop" else {"sparsity": 0.5}
    gates = [{"metric": "domain_perplexity", "max_ratio": 1.5}]
    evaluation = {"domain": {"dataset": "other"}, "gates": gates}
    found = attempt(models["decoder"], recipe=recipe, target=target, evaluation=evaluation).evaluation
    assert found.dataset == "text"
    assert found.domain is not None
    assert (found.domain.dataset, found.domain.holdout) == ("other", False)
    assert found.gates[0].metric == "domain_perplexity"


def test_what_is_learned_from_is_held_out_whichever_it_is(models: dict[str, Inspection]) -> None:
    learned = {"method": "lora", "dataset": "other"}
    evaluation = {"domain": {"dataset": "other"}}
    found = attempt(models["decoder"], recovery=learned, evaluation=evaluation).evaluation
    assert found.domain is not None
    assert (found.holdout, found.domain.holdout) == (True, True)


def test_a_classifier_is_judged_on_a_domain_with_labels(models: dict[str, Inspection]) -> None:
    classifier = models["classifier"]
    labelled = {"calibration": {"dataset": "named", "domain": {"dataset": "numbered"}}}
    found = attempt(classifier, recipe="d-pruner", **labelled).evaluation
    assert found.domain is not None
    assert (found.metrics, found.domain.dataset) == (["accuracy"], "numbered")
    # Without labels the domain still calibrates, and nobody has asked for its quality.
    unlabelled = {"calibration": {"dataset": "named", "domain": {"dataset": "text"}}}
    assert attempt(classifier, recipe="d-pruner", **unlabelled).evaluation.domain is None
    general = {"calibration": {"dataset": "text", "domain": {"dataset": "named"}}}
    silent = attempt(classifier, recipe="d-pruner", **general).evaluation
    assert (silent.dataset, silent.domain) == (None, None)


def with_domain(dataset: str, **more: Any) -> dict[str, Any]:
    return {"recipe": "d-pruner", "calibration": {"dataset": "text", "domain": {"dataset": dataset, **more}}}


REFUSED: list[tuple[str, dict[str, Any], str, str, str]] = [
    # (model, changes, where, code, words)
    ("decoder", {"recipe": "d-pruner", "calibration": None}, "/calibration", "calibration_missing",
     '"domain": {"dataset"'),
    ("decoder", {"recipe": "d-pruner"}, "/calibration/domain", "domain_missing", "general"),
    ("decoder", {"options": {"criterion": "d-pruner"}}, "/calibration/domain", "domain_missing", "wanda"),
    ("decoder", {"recipe": "wanda", **BOTH}, "/calibration/domain", "domain_unused", "evaluation.domain"),
    ("decoder", {"recipe": "d-pruner", **BOTH, "options": {"criterion": "gblm"}}, "/calibration/domain",
     "domain_unused", "one calibration dataset"),
    ("decoder", {"recipe": "layer-drop", "target": {"layers": 1}, **BOTH}, "/calibration/domain",
     "domain_unused", "leave it out"),
    ("decoder", with_domain("text"), "/calibration/domain/dataset", "domain_not_apart", "general text"),
    ("decoder", with_domain("nowhere"), "/calibration/domain/dataset", "dataset_unknown", "'nowhere'"),
    ("decoder", with_domain("other", sequence_length=1000), "/calibration/domain/sequence_length",
     "sequence_too_long", "1,000"),
    ("decoder", with_domain("small"), "/evaluation/domain/dataset", "dataset_too_small",
     "another evaluation.domain.dataset"),
    ("encoder", D_PRUNER, "/options", "option_conflict", "needs a loss"),
    ("mute", D_PRUNER, "/calibration/domain/dataset", "tokenizer_missing", ""),
    ("decoder", {"evaluation": {"domain": {}}}, "/evaluation/domain/dataset", "evaluation_data_missing",
     "evaluation.domain.dataset"),
    ("decoder", {"evaluation": {"domain": {"dataset": "nowhere"}}}, "/evaluation/domain/dataset",
     "dataset_unknown", "'nowhere'"),
    ("decoder", {"evaluation": {"domain": {"dataset": "text"}}}, "/evaluation/domain/dataset",
     "domain_not_apart", "nothing would be apart"),
    ("decoder", {**D_PRUNER, "evaluation": {"dataset": "other"}}, "/evaluation/dataset", "domain_not_apart",
     "general text"),
    ("decoder", {"recipe": "magnitude", "calibration": None, "evaluation": {"domain": {"dataset": "text"}}},
     "/evaluation/dataset", "evaluation_data_missing", "give evaluation.dataset too"),
    ("decoder", {"evaluation": {"domain": {"dataset": "other", "sequence_length": 999}}},
     "/evaluation/domain/sequence_length", "sequence_too_long", "999"),
    ("decoder", {"evaluation": {"domain": {"dataset": "other", "holdout": True}}},
     "/evaluation/domain/holdout", "holdout_conflict", "nothing is held out"),
    ("classifier", {"calibration": {"dataset": "named"}, "evaluation": {"domain": {"dataset": "text"}}},
     "/evaluation/domain/dataset", "labels_missing", "no labels"),
    ("classifier", {"calibration": {"dataset": "named"}, "evaluation": {"domain": {"dataset": "misnamed"}}},
     "/evaluation/domain/dataset", "labels_unknown", "'pso'"),
    ("decoder", {"evaluation": {"gates": [{"metric": "domain_perplexity", "max": 9}]}},
     "/evaluation/gates/0/metric", "metric_not_evaluated", "evaluation.domain"),
    ("decoder", {"evaluation": {"gates": [{"metric": "domain_perplexty", "max": 9}]}},
     "/evaluation/gates/0/metric", "metric_unknown", "'domain_perplexity'"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "changes", "where", "code", "words"), REFUSED, ids=str)
def test_what_is_refused(
    model: str, changes: dict[str, Any], where: str, code: str, words: str, models: dict[str, Inspection]
) -> None:
    found = {fault.pointer: fault for fault in faults(models[model], **changes)}
    assert where in found, found
    assert found[where].code == code
    assert words in found[where].message


def test_unknown_keys_of_a_domain_are_named() -> None:
    from compression.errors import SpecificationInvalid

    least = {"model": "m", "recipe": "d-pruner", "target": {"sparsity": 0.5}}
    for part in ("calibration", "evaluation"):
        with pytest.raises(SpecificationInvalid) as caught:
            parse({**least, part: {"dataset": "a", "domain": {"dataset": "b", "sample": 3}}})
        (fault,) = caught.value.errors
        assert fault.pointer == f"/{part}/domain/sample"
        assert "'samples'" in fault.message


def test_only_recipes_that_read_a_domain_say_so() -> None:
    offers = catalogue.load().recipes
    assert [name for name, offer in offers.items() if "domain" in offer.needs] == ["d-pruner"]
