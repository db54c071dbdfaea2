"""Specifications for models of images: which data fits, how images become inputs, what is refused and
where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.errors import Fault, SpecificationInvalid
from compression.loading.admission import admit_model, folder_sources
from compression.loading.dataset_files import DatasetFacts
from compression.preprocessing import Preprocessing, of_model
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_bert

NAMES = ["no", "perhaps", "yes"]
DATASETS = {
    "named": DatasetFacts("image", 100, 1000, 0, [*NAMES]),
    "numbered": DatasetFacts("image", 100, 1000, 0, [0, 2]),
    "unknown": DatasetFacts("image", 100, 1000, 0, []),
    "bare": DatasetFacts("image", 100, 1000, 0, None),
    "few": DatasetFacts("image", 3, 1000, 0, [*NAMES]),
    "others": DatasetFacts("image", 100, 1000, 0, ["cat", "dog", "owl"]),
    "misnamed": DatasetFacts("image", 100, 1000, 0, ["no", "yse"]),
    "outside": DatasetFacts("image", 100, 1000, 0, [0, 3]),
    "text": DatasetFacts("labelled", 100, 1000, 1000, ["no", "yes"]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    root = tmp_path_factory.mktemp("models")

    def look(folder: Path) -> Inspection:
        return Inspection.from_json(admit_model(folder_sources(folder)).inspection)

    vit = "ViTForImageClassification"
    strange = tiny_family(root / "strange", vit)
    (strange / "preprocessor_config.json").write_text('{"image_processor_type": "OtherImageProcessor"}')
    large = tiny_family(root / "large", vit)
    (large / "preprocessor_config.json").write_text('{"size": 224, "resample": 3}')
    return {
        "vit": look(tiny_family(root / "vit", vit)),
        "oblong": look(tiny_family(root / "oblong", f"{vit}-oblong")),
        "four": look(tiny_family(root / "four", vit, num_channels=4)),
        "strange": look(strange),
        "large": look(large),
        "bert": look(tiny_bert(root / "bert", labels=["no", "yes"])),
    }


def attempt(inspection: Inspection, **changes: Any) -> JobSpecification:
    data = {
        "model": "mdl_1",
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": "named"},
    }
    data = {key: value for key, value in {**data, **changes}.items() if value is not None}
    found = resolve(parse(data), catalogue.load(), inspection, DATASETS)
    assert resolve(parse(found.to_json()), catalogue.load(), inspection, DATASETS) == found
    return found


def fault(inspection: Inspection, **changes: Any) -> Fault:
    with pytest.raises(SpecificationInvalid) as caught:
        attempt(inspection, **changes)
    assert len(caught.value.errors) == 1, caught.value.errors
    return caught.value.errors[0]


def test_defaults(models: dict[str, Inspection]) -> None:
    found = attempt(models["vit"])
    assert found.preprocessing == of_model(24, 24)
    assert found.preprocessing is not None
    assert None not in found.preprocessing.model_dump().values()
    assert found.calibration is not None
    assert (found.calibration.samples, found.calibration.sequence_length) == (128, None)
    evaluation = found.evaluation
    assert (evaluation.dataset, evaluation.holdout, evaluation.samples) == ("named", True, 2048)
    assert (evaluation.metrics, evaluation.sequence_length) == (["accuracy"], None)
    assert attempt(models["oblong"]).preprocessing == of_model(16, 40)


def test_without_data_nothing_is_said_of_images(models: dict[str, Inspection]) -> None:
    for name in ("vit", "four", "strange", "large"):
        assert attempt(models[name], recipe="magnitude", calibration=None).preprocessing is None


def test_a_job_may_say_how(models: dict[str, Inspection]) -> None:
    given = {
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": 24,
        "image_mean": [0.1, 0.2, 0.3],
    }
    found = attempt(models["vit"], preprocessing=given).preprocessing
    assert found is not None
    assert found.output() == (24, 24)
    assert (found.image_mean, found.image_std, found.resample) == ([0.1, 0.2, 0.3], [0.5], 2)
    assert attempt(models["strange"], preprocessing={"size": 24}).preprocessing == of_model(24, 24)
    wanted = attempt(models["large"], preprocessing={"size": 24}).preprocessing
    assert wanted == Preprocessing(resample=3).over(of_model(24, 24))


@pytest.mark.parametrize("name", ["named", "numbered", "unknown", "others"])
def test_labels_that_fit(name: str, models: dict[str, Inspection]) -> None:
    assert attempt(models["vit"], calibration={"dataset": name}).evaluation.dataset == name


def test_images_without_labels_calibrate_and_recover_but_do_not_judge(models: dict[str, Inspection]) -> None:
    lora = {"method": "lora"}
    found = attempt(models["vit"], calibration={"dataset": "bare"}, recovery=lora)
    assert (found.evaluation.dataset, found.recovery.dataset) == (None, "bare")
    task = {"method": "lora", "options": {"loss": "task"}}
    told = fault(models["vit"], calibration={"dataset": "bare"}, recovery=task)
    assert (told.pointer, told.code) == ("/recovery/options/loss", "labels_missing")


REFUSED: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("vit", {"calibration": None}, "/calibration", "calibration_missing", "needs images"),
    ("vit", {"calibration": {"dataset": "text"}}, "/calibration/dataset", "dataset_kind_unsupported",
     "holds text"),
    ("vit", {"evaluation": {"dataset": "text"}}, "/evaluation/dataset", "dataset_kind_unsupported",
     ".parquet"),
    ("vit", {"recovery": {"method": "lora", "dataset": "text"}}, "/recovery/dataset",
     "dataset_kind_unsupported", ""),
    ("bert", {}, "/calibration/dataset", "dataset_kind_unsupported",
     "holds images, but this model takes text"),
    ("vit", {"evaluation": {"dataset": "bare"}}, "/evaluation/dataset", "labels_missing",
     "a folder for each class"),
    ("vit", {"evaluation": {"dataset": "misnamed"}}, "/evaluation/dataset", "labels_unknown",
     "did you mean 'yes'"),
    ("vit", {"evaluation": {"dataset": "outside"}}, "/evaluation/dataset", "labels_unknown", "0 to 2"),
    ("vit", {"calibration": {"dataset": "few"}}, "/evaluation/dataset", "dataset_too_small", "3 images"),
    ("vit", {"calibration": {"dataset": "named", "sequence_length": 10}}, "/calibration/sequence_length",
     "option_conflict", "no sequences"),
    ("vit", {"evaluation": {"sequence_length": 10}}, "/evaluation/sequence_length", "option_conflict", ""),
    ("vit", {"evaluation": {"metrics": ["perplexity"]}}, "/evaluation/metrics/0", "metric_unknown",
     "accuracy"),
    ("vit", {"preprocessing": {"size": 32}}, "/preprocessing/size", "preprocessing_invalid", "24 x 24"),
    ("vit", {"preprocessing": {"size": {"shortest_edge": 24}}}, "/preprocessing/size",
     "preprocessing_invalid",
     "different sizes"),
    ("vit", {"preprocessing": {"do_resize": False}}, "/preprocessing/size", "preprocessing_invalid", ""),
    ("vit", {"preprocessing": {"do_center_crop": True}}, "/preprocessing/crop_size",
     "preprocessing_invalid", "224"),
    ("vit", {"preprocessing": {"image_mean": [0.5, 0.5]}}, "/preprocessing/image_mean",
     "preprocessing_invalid", "3"),
    ("large", {}, "/preprocessing/size", "preprocessing_invalid", '"size": {"height": 24, "width": 24}'),
    ("strange", {}, "/preprocessing", "preprocessing_missing", "preprocessor_config.json"),
    ("four", {}, "/model", "preprocessing_unsupported", "4 channels"),
    ("bert", {"recipe": "magnitude", "calibration": None, "preprocessing": {"size": 24}}, "/preprocessing",
     "preprocessing_unsupported", "takes text"),
    ("vit", {"preprocessing": {"sise": 24}}, "/preprocessing/sise", "unknown_key", "did you mean 'size'"),
    ("vit", {"preprocessing": {"resample": 7}}, "/preprocessing/resample", "invalid", ""),
    ("vit", {"preprocessing": {"size": {"height": 24}}}, "/preprocessing/size", "preprocessing_invalid", ""),
    ("vit", {"preprocessing": {"image_std": [0.5, 0.0, 0.5]}}, "/preprocessing/image_std",
     "preprocessing_invalid", ""),
]  # fmt: skip


@pytest.mark.parametrize(("model", "changes", "pointer", "code", "words"), REFUSED)
def test_refusals(
    model: str, changes: dict[str, Any], pointer: str, code: str, words: str, models: dict[str, Inspection]
) -> None:
    told = fault(models[model], **changes)
    assert (told.pointer, told.code) == (pointer, code)
    assert words in told.message
    assert told.message.endswith(".")
