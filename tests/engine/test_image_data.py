"""Files of images as batches: every container gives the same images; samples, held-out parts, classes,
memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compression.errors import DatasetInsufficient, DatasetInvalid
from compression.loading.data import overlap
from compression.loading.images import plan as module
from compression.loading.images.classes import check_labels, class_numbers
from compression.loading.images.plan import ImageCorpus, ImagePlan, PixelBatches
from compression.loading.images.reading import open_images
from compression.preprocessing import of_model
from tests.pictures import NAMES, encoded, folders, pictures, write_npz, write_parquet, write_tar, write_zip
from tests.security.hostile import refused

IMAGES, LABELS = pictures(48)
CONFIG = {"id2label": dict(enumerate(NAMES))}
HOW = of_model(24, 24)


def files(folder: Path) -> dict[str, Path]:
    """The same pictures in every container."""
    packed = folders(IMAGES, LABELS)
    return {
        "parquet": write_parquet(folder / "a.parquet", IMAGES, LABELS, names=NAMES, group=7),
        "bare": write_parquet(folder / "b.parquet", IMAGES, [NAMES[label] for label in LABELS], bare=True),
        "npz": write_npz(folder / "a.npz", IMAGES, LABELS),
        "npz-packed": write_npz(folder / "b.npz", IMAGES, LABELS, packed=True),
        "npz-channels-first": write_npz(
            folder / "c.npz", np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)), LABELS
        ),
        "zip": write_zip(folder / "a.zip", packed),
        "zip-stored": write_zip(folder / "b.zip", packed, packed=False),
        "tar": write_tar(folder / "a.tar", packed),
    }


def plan(path: Path, **options: Any) -> ImagePlan:
    return ImagePlan(options.pop("config", CONFIG), 3, HOW, {"d": path}, **options)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files(tmp_path_factory.mktemp("every"))


def joined(batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.cat([batch[name] for batch in batches]) for name in ("pixel_values", "labels"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "kind", ["bare", "npz", "npz-packed", "npz-channels-first", "zip", "zip-stored", "tar"]
)
def test_every_container_gives_the_same_images(kind: str, every: dict[str, Path]) -> None:
    wanted = joined(plan(every["parquet"]).evaluation("d", None, 0).batches)
    found = joined(plan(every[kind]).evaluation("d", None, 0).batches)
    order = [torch.argsort(pixels.flatten(1).double().sum(1)) for pixels, _ in (wanted, found)]
    for first, second in zip(wanted, found, strict=True):
        assert torch.equal(first[order[0]], second[order[1]])
    assert wanted[1].bincount().tolist() == [16, 16, 16]


def test_batches_are_as_promised(every: dict[str, Path]) -> None:
    found = plan(every["parquet"]).calibration("d", 20, 0, 3, 8)
    assert [batch["pixel_values"].shape[0] for batch in found.batches] == [8, 8, 4]
    batch = found.batches[0]
    assert (batch["pixel_values"].dtype, batch["labels"].dtype) == (torch.float32, torch.int64)
    assert batch["pixel_values"].shape == (8, 3, 24, 24)
    assert found.facts() == {"images": 20, "sha256": found.digest}
    part = found.batches[1:]
    assert torch.equal(part[0]["pixel_values"], found.batches[1]["pixel_values"])
    assert (len(part), len(list(part))) == (2, 2)
    assert found.labels == NAMES


def test_the_sample_depends_on_the_seed_alone(every: dict[str, Path]) -> None:
    first, again, other = (plan(every["npz"]).calibration("d", 12, 0, seed, 4) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    ranked = sorted(range(48), key=lambda n: hashlib.sha256(b"1:" + key(IMAGES[n])).digest())
    assert first.texts == {key(IMAGES[number]) for number in ranked[:12]}
    labels = torch.cat([batch["labels"] for batch in first.batches]).tolist()
    assert labels == [LABELS[number] for number in ranked[:12]]
    assert plan(every["npz"]).calibration("d", 500, 0, 1, 4).sequences == 48


def key(image: Any) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()[:16]


def test_an_archive_is_not_judged_by_its_first_class(every: dict[str, Path]) -> None:
    labels = torch.cat([batch["labels"] for batch in plan(every["zip"]).evaluation("d", 18, 0).batches])
    assert len(set(labels.tolist())) == 3


def test_held_out_images_are_in_no_other_part(every: dict[str, Path]) -> None:
    divided = plan(every["tar"], held_out=["d"])
    held = divided.evaluation("d", None, 0)
    assert held.sequences == 9
    calibration, training = divided.calibration("d", 99, 0, 0, 8), divided.training("d", 99, 0, 0)
    assert calibration.sequences == len(training) == 39
    assert overlap(held, calibration) == overlap(held, training) == 0
    whole = plan(every["tar"])
    assert overlap(whole.evaluation("d", None, 0), whole.training("d", 10, 0, 0)) == 10
    alone = write_npz(every["tar"].parent / "same.npz", IMAGES[:1].repeat(9, 0), [0] * 9)
    with pytest.raises(DatasetInsufficient):
        plan(alone, held_out=["d"]).evaluation("d", None, 0)


def test_training_batches_depend_on_their_indices_alone(every: dict[str, Path]) -> None:
    rows = plan(every["zip"]).training("d", 30, 0, 5)
    batch = rows.batch([3, 9, 3])
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][2])
    assert torch.equal(batch["pixel_values"][1], rows.batch([9])["pixel_values"][0])
    assert rows.facts() == plan(every["zip"]).training("d", 30, 0, 5).facts()
    assert rows.facts() != plan(every["zip"]).training("d", 30, 0, 6).facts()


def test_pixels_beyond_the_room_live_on_disk(every: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plan(every["npz"]).evaluation("d", None, 0)
    monkeypatch.setattr(module, "MEMORY_BYTES", 5000)
    found = plan(every["npz"]).evaluation("d", None, 0)
    assert isinstance(found.batches, PixelBatches)
    assert found.digest == wanted.digest
    for first, second in zip(wanted.batches, found.batches, strict=True):
        assert torch.equal(first["pixel_values"], second["pixel_values"])


def test_grey_images(tmp_path: Path) -> None:
    grey = IMAGES[:, :, :, 1]
    found = ImagePlan(CONFIG, 1, HOW, {"d": write_npz(tmp_path / "a.npz", grey, LABELS)}).evaluation(
        "d", 4, 0
    )
    assert found.batches[0]["pixel_values"].shape == (4, 1, 24, 24)


def test_images_without_labels(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"d/{n}.png": encoded(image) for n, image in enumerate(IMAGES[:6])})
    assert "labels" not in plan(path).calibration("d", 6, 0, 0, 3).batches[0]
    assert "labels" not in plan(path).training("d", 6, 0, 0).batch([0])
    refused(DatasetInvalid, lambda: plan(path).evaluation("d", None, 0), "no label")


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES[:6], [0, 1, 2, 3, -1, 0])
    refused(DatasetInvalid, lambda: plan(path).evaluation("d", None, 0), "image 3 has the label '3'")
    path = write_parquet(tmp_path / "b.parquet", IMAGES[:6], [0, 1, 2, 1, None, 0])  # type: ignore[list-item]
    refused(DatasetInvalid, lambda: plan(path).evaluation("d", None, 0), "image 4 has no label")
    path = write_parquet(tmp_path / "c.parquet", IMAGES[:2], ["no", "never"])
    refused(DatasetInvalid, lambda: plan(path).evaluation("d", None, 0), "'never' is no class")


def test_what_only_reading_shows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"image": [{"bytes": encoded(IMAGES[0]), "path": None}, {"bytes": None, "path": "a.png"}]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    refused(DatasetInvalid, lambda: ImageCorpus(tmp_path / "a.parquet"), "image 1 of a.parquet: has no bytes")
    data = write_parquet(tmp_path / "b.parquet", IMAGES, LABELS).read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:3000] + bytes(900) + data[3900:])
    refused(DatasetInvalid, lambda: plan(tmp_path / "b.parquet").evaluation("d", None, 0), "b.parquet")
    data = write_zip(tmp_path / "a.zip", folders(IMAGES, LABELS)).read_bytes()
    at = data.index(b"IDAT") if b"IDAT" in data else 200
    (tmp_path / "a.zip").write_bytes(data[: at + 30] + bytes(9) + data[at + 39 :])
    refused(DatasetInvalid, lambda: list(open_images(tmp_path / "a.zip").rows()), "damaged")


def test_names_become_class_numbers() -> None:
    assert class_numbers(["yes", "no"], NAMES) == {"yes": 2, "no": 0}
    assert class_numbers(["a", "b", "c"], NAMES) == {"a": 0, "b": 1, "c": 2}
    assert class_numbers(["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"]) == {"0": 0, "1": 1, "2": 2}
    eleven = sorted(str(number) for number in range(11))
    with pytest.raises(ValueError, match="as many digits"):
        class_numbers(eleven, [f"LABEL_{number}" for number in range(11)])
    assert class_numbers(eleven, eleven)["10"] == eleven.index("10")
    with pytest.raises(ValueError, match=r"2 classes, the model 3, and 'yse'.*did you mean 'yes'"):
        class_numbers(["no", "yse"], NAMES)
    assert class_numbers(["a", "b", "c"], ["crane", "crane", "c"]) == {"a": 0, "b": 1, "c": 2}
    check_labels([], NAMES)
    check_labels(None, NAMES)
    with pytest.raises(ValueError, match="label 3, but the model's classes are 0 to 2"):
        check_labels([0, 3], NAMES)
