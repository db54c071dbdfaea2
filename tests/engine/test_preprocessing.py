"""Images become inputs as transformers' own image processors make them; settings of strangers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from compression.anatomy import Inspection
from compression.errors import DatasetInvalid, PreprocessorInvalid
from compression.loading.admission import admit_model, folder_sources
from compression.loading.images.pixels import decode, normalise, prepare
from compression.loading.images.reading import Row
from compression.preprocessing import PROCESSORS, Preprocessing, complete, of_model
from tests.conftest import SHARED
from tests.pictures import encoded, pictures
from tests.security.hostile import refused
from tests.tiny_families import tiny_family

STOCK = {
    "ViT": ViTImageProcessorPil,
    "DeiT": DeiTImageProcessorPil,
    "CLIP": CLIPImageProcessorPil,
    "Bit": BitImageProcessorPil,
}

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": 24, "resample": 3}),
    ("ViT", {"size": {"height": 17, "width": 40}, "resample": 1, "image_mean": [0.485, 0.456, 0.406]}),
    ("ViT", {"size": {"shortest_edge": 9}, "do_normalize": False}),
    ("ViT", {"do_resize": False, "do_rescale": False, "image_mean": [100.0] * 3, "image_std": [30.5] * 3}),
    ("ViT", {"size": 30, "do_center_crop": True, "crop_size": {"height": 11, "width": 14},
     "rescale_factor": 0.01}),
    ("ViT", {"size": 8, "do_center_crop": True, "crop_size": {"height": 13, "width": 6}, "resample": 0}),
    ("ViT", {"size": 9, "do_center_crop": True, "crop_size": {"height": 14, "width": 12}}),
    ("DeiT", {}),
    ("DeiT", {"size": 40, "crop_size": {"height": 24, "width": 24}}),
    ("CLIP", {}),
    ("CLIP", {"size": 20, "crop_size": 16}),
    ("Bit", {"size": {"shortest_edge": 33}, "crop_size": {"height": 24, "width": 24}}),
]  # fmt: skip


def ours(image: Image.Image, how: Preprocessing) -> torch.Tensor:
    row = Row(0, "an image", png(image), None)
    return normalise(torch.from_numpy(prepare(decode(row, 3), how))[None], how)[0]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("processor", "given"), SETTINGS)
@pytest.mark.parametrize("size", [(20, 28), (61, 33)])
def test_like_the_stock_processor(processor: str, given: dict[str, Any], size: tuple[int, int]) -> None:
    how = complete(given, processor)
    stock = STOCK[processor](**given)
    for array in pictures(2, 3, *size)[0]:
        image = Image.fromarray(array)
        wanted = torch.as_tensor(np.asarray(stock(image)["pixel_values"][0]), dtype=torch.float32)
        found = ours(image, how)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("processor", sorted(STOCK))
def test_defaults_are_those_of_the_stock_processor(processor: str) -> None:
    stock = STOCK[processor]
    for name, value in PROCESSORS[processor].model_dump(exclude_none=True).items():
        if getattr(stock, name, None) is not None:
            wanted = getattr(stock, name)
            if isinstance(wanted, list | tuple):
                value, wanted = value * (3 // len(value)), list(wanted)
            assert value == wanted, name
    assert PROCESSORS[processor].do_center_crop == bool(getattr(stock, "do_center_crop", False))


@pytest.mark.shared
def test_like_the_stock_processor_on_photographs() -> None:
    from compression.loading.images.reading import open_images

    stock, how = ViTImageProcessorPil(), of_model(224, 224)
    rows = open_images(SHARED / "data/cifar10/cifar10-test.parquet").rows(range(0, 200, 10))
    for row in rows:
        assert isinstance(row.data, bytes)
        wanted = np.asarray(stock(Image.open(io.BytesIO(row.data)))["pixel_values"][0])
        found = normalise(torch.from_numpy(prepare(decode(row, 3), how))[None], how)[0]
        assert np.abs(found.numpy() - wanted).max() <= 1e-5


def test_modes_and_orientation() -> None:
    array = pictures(1)[0][0]
    image = Image.fromarray(array)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(np.asarray(decode(Row(0, "a", png(image), None), 1)), grey)
    for mode in ("L", "LA", "P", "RGBA", "1"):
        assert decode(Row(0, "a", png(image.convert(mode)), None), 3).mode == "RGB"
    assert np.array_equal(np.asarray(decode(Row(0, "a", array, None), 3)), array)
    assert np.array_equal(np.asarray(decode(Row(0, "a", grey[:, :, None], None), 3))[:, :, 1], grey)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(stream, "PNG", exif=exif)
    turned = decode(Row(0, "a", stream.getvalue(), None), 3)
    assert np.array_equal(np.asarray(turned), np.rot90(array, -1))


def test_images_that_cannot_be_decoded() -> None:
    deep = Image.fromarray(np.full((9, 9), 40_000, np.uint16))
    refused(DatasetInvalid, lambda: decode(Row(7, "image 7 of a", png(deep), None), 3), "image 7 of a")
    whole = encoded(pictures(1)[0][0])
    for data in (whole[:200], whole[:60] + bytes(60) + whole[120:], b"hello", b""):
        refused(
            DatasetInvalid, lambda data=data: decode(Row(3, "image 3 of a", data, None), 3), "image 3 of a"
        )


def settings_of(folder: Path, settings: Any) -> Inspection:
    (folder / "preprocessor_config.json").write_text(
        settings if isinstance(settings, str) else json.dumps(settings)
    )
    found = admit_model(folder_sources(folder))
    kept = json.loads(found.rewritten["preprocessor_config.json"])
    assert not {"auto_map", "_processor_class", "data_format"} & kept.keys()
    return Inspection.from_json(json.loads(json.dumps(found.inspection)))


def test_the_model_s_file_is_read(tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "vit", "ViTForImageClassification")
    admitted = Inspection.from_json(admit_model(folder_sources(folder)).inspection)
    assert admitted.preprocessing == of_model(24, 24).model_dump(mode="json")
    ViTImageProcessorPil(size=24, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    found = Preprocessing.model_validate(
        settings_of(folder, (folder / "preprocessor_config.json").read_text()).preprocessing
    )
    assert (found.image_mean, found.output()) == ([0.1, 0.2, 0.3], (24, 24))
    old = {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 24,
        "_processor_class": "X",
        "data_format": "x",
    }
    assert settings_of(folder, old).preprocessing is not None
    assert (settings_of(folder, {"crop_size": 24}).preprocessing or {})["do_center_crop"] is False
    for unknown in (
        {"do_pad": True},
        {"size": {"longest_edge": 9}},
        {"image_processor_type": "SwinImageProcessor"},
    ):
        assert settings_of(folder, unknown).preprocessing is None
    deit = tiny_family(tmp_path / "deit", "DeiTForImageClassification")
    assert (settings_of(deit, {"size": 32}).preprocessing or {})["do_center_crop"] is True


@pytest.mark.parametrize(
    "settings",
    [
        "{", "[]", "null", '{"size": 1, "size": 2}', '{"image_mean": [NaN]}',
         {"auto_map": {"AutoImageProcessor": "a.B"}},
        {"size": -1}, {"size": 10**9}, {"size": "big"}, {"size": {"height": 3}}, {"size": {"height": 3,
         "depth": 3}},
        {"resample": 9}, {"resample": "bilinear"}, {"rescale_factor": 0}, {"rescale_factor": "1/255"},
        {"image_std": [0.5, 0, 0.5]}, {"image_mean": [1.0] * 100}, {"image_mean": "x"}, {"do_resize": "yes"},
        {"crop_size": {"shortest_edge": 4}}, {"image_processor_type": "../../evil.py"},
         {"image_processor_type": 3},
    ],
    ids=lambda settings: str(settings)[:40],
)  # fmt: skip
def test_bad_settings(settings: Any, tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", "ViTForImageClassification")
    refused(PreprocessorInvalid, lambda: settings_of(folder, settings), "preprocessor_config.json")
