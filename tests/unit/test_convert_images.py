"""`secateur convert` of folders with image classifiers: ONNX that a job takes without preprocessing."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

from compression import pipeline
from compression.errors import ArchitectureUnknown
from compression.loading import convert_images, image_settings
from compression.loading.admission import admit_model, folder_sources
from compression.loading.images.pixels import normalise, prepare
from compression.preprocessing import complete
from compression.report.schema import validate
from secateur import convert as commands
from secateur.errors import InputInvalid
from tests.engine.jobs import Recorder, request, write_job
from tests.pictures import write_npz

LABELS = {0: "red", 1: "green", 2: "blue"}
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875,
    "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=LABELS,
        label2id={name: key for key, name in LABELS.items()},
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def convnext() -> Any:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, id2label=LABELS,
        label2id={name: key for key, name in LABELS.items()},
    )  # fmt: skip
    return transformers.ConvNextForImageClassification(config)


def saved(model: Any, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def by_the_command(source: Path, out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "convert", str(source), str(out)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "differs from torch by at most" in done.stdout


def by_the_script(source: Path, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "differs from torch by at most" in convert_images.convert(source, out, [])[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("make", "convert"), [(resnet, by_the_command), (convnext, by_the_script)])
def test_a_classifier_becomes_a_graph_that_a_job_cuts(tmp_path: Path, make: Any, convert: Any) -> None:
    torch.manual_seed(0)
    model = make()
    source = saved(model, tmp_path / "source")
    with pytest.raises(ArchitectureUnknown, match="secateur convert FOLDER OUT"):
        admit_model(folder_sources(source))
    folder = tmp_path / "job" / "model"
    folder.parent.mkdir()
    convert(source, folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "config.json", "preprocessor_config.json",
    }  # fmt: skip
    admitted = admit_model(folder_sources(folder))
    assert admitted.inspection["labels"] == list(LABELS.values())
    assert admitted.inspection["preprocessing"]["image_mean"] == [0.4, 0.5, 0.6]
    x = torch.randn(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = model(x).logits.numpy()
    assert np.allclose(session.run(None, {"pixel_values": x.numpy()})[0], wanted, atol=1e-4)
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 36, 3)).astype(np.uint8)
    write_npz(tmp_path / "job" / "images.npz", images, [number % 3 for number in range(20)])
    asked = {
        "recipe": "group-l2", "target": {"macs": 0.6}, "evaluation": {"dataset": "images", "measure": []},
    }  # fmt: skip
    write_job(tmp_path / "job", "model", {"images": "images.npz"}, asked)
    outcome = pipeline.run(request(tmp_path / "job", tmp_path / "work"), Recorder())
    report = json.loads(outcome.report.read_text())
    validate(report)
    assert report["target"]["ratio"] <= 0.6
    assert report["verification"]["ok"]
    assert (outcome.artifact / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("processor", "given"),
    [
        (ConvNextImageProcessorPil, {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
        (ConvNextImageProcessorPil, {"size": {"shortest_edge": 384}, "resample": 2}),
        (MobileNetV2ImageProcessorPil, {"size": {"shortest_edge": 40}, "crop_size": 32}),
        (EfficientNetImageProcessorPil, {"size": {"height": 30, "width": 34}, "rescale_offset": True}),
        (EfficientNetImageProcessorPil, {"size": {"height": 30, "width": 34}, "include_top": False}),
    ],
)  # fmt: skip
def test_settings_mean_what_the_processors_do(processor: Any, given: dict[str, Any]) -> None:
    given = {**given, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 61, 3)).astype(np.uint8))
    wanted = processor(**given)(picture, return_tensors="np")["pixel_values"][0]
    name = processor.__name__.removesuffix("Pil")
    found = image_settings.of_processor({"image_processor_type": name, **given})
    assert found.pop("image_processor_type") == "BitImageProcessor"
    how = complete(found, "Bit")
    made = normalise(torch.from_numpy(prepare(picture, how))[None], how)[0]
    assert np.allclose(made.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"image_processor_type": "DeiTImageProcessor", "size": 72, "crop_size": 64}, (64, 64)),
        ({"image_processor_type": "DeiTImageProcessorFast", "size": 256}, (224, 224)),
        ({"image_processor_type": "DeiTImageProcessor", "do_center_crop": False, "size": 72}, (72, 72)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 96}, (96, 96)),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}}, (32, 48)),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False,
          "size": {"shortest_edge": 32}}, None),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224}, (224, 224)),
        ({"image_processor_type": "EfficientNetImageProcessor"}, (346, 346)),
        ({"image_processor_type": "LevitImageProcessor"}, None),
    ],
)  # fmt: skip
def test_sizes_that_settings_make(given: dict[str, Any], wanted: tuple[int, int] | None) -> None:
    assert image_settings.output(image_settings.of_processor(given)) == wanted


def test_settings_of_timm() -> None:
    given = {
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    found = image_settings.of_timm(given)
    assert found["size"] == {"shortest_edge": 248}
    assert found["crop_size"] == {"height": 224, "width": 224}
    assert (found["resample"], found["image_mean"]) == (3, [0.1, 0.2, 0.3])
    squashed = image_settings.of_timm({**given, "crop_mode": "squash", "crop_pct": 1.0})
    assert squashed["size"] == {"height": 224, "width": 224}
    for change in (
        {"crop_mode": "border"},
        {"interpolation": "random"},
        {"mean": None},
        {"input_size": None},
    ):
        assert image_settings.of_timm({**given, **change}) == {}
    assert image_settings.of_processor({"image_processor_type": "MobileViTImageProcessor"}) == {}
    assert image_settings.of_processor(PROCESSOR | {"do_pad": True}) == {}
    assert image_settings.labels({"label_names": ["a", "b"]}) == {"0": "a", "1": "b"}
    assert image_settings.labels({"id2label": {"1": "b"}}) == {}


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    source = saved(resnet(), tmp_path / "source")
    assert commands.is_classifier(str(source))
    with pytest.raises(InputInvalid, match="must be a folder"):
        commands.run_classifier(source, tmp_path / "out.onnx", [])
    with pytest.raises(InputInvalid, match="is there already"):
        commands.run_classifier(source, source, [])
    config = json.loads((source / "config.json").read_text())
    refused = {
        "missing keys in the weights for ResNet": config | {"embedding_size": 16},
        "has no class MineForImageClassification": config | {"architectures": ["MineForImageClassification"]},
        "must name one": config | {"architectures": ["ResNetModel"]},
    }
    for words, changed in refused.items():
        (source / "config.json").write_text(json.dumps(changed))
        with pytest.raises(convert_images.NotConvertible, match=words):
            convert_images.convert(source, tmp_path / "out", [])
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(convert_images.NotConvertible, match="says how large images are"):
        convert_images.convert(source, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
    (source / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
    assert commands.is_classifier(str(source))
    with pytest.raises(ArchitectureUnknown, match=r"an architecture of timm.*secateur convert FOLDER OUT"):
        admit_model(folder_sources(source))
    (source / "model.safetensors").unlink()
    assert not commands.is_classifier(str(source))
