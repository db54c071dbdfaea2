"""Images to learn from: the same ones as before, decoded ahead and changed in the same way every time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compression.errors import DatasetInvalid
from compression.loading.ahead import Ahead
from compression.loading.images import streaming
from compression.loading.images.augmentation import Augmentation, uniforms
from compression.loading.images.plan import ImagePlan
from compression.loading.images.reading import Row
from compression.preprocessing import of_model
from tests.pictures import NAMES, folders, pictures, write_npz, write_parquet, write_zip

IMAGES, LABELS = pictures(40)
CONFIG = {"id2label": dict(enumerate(NAMES))}
HOW = of_model(24, 24)


def plan(path: Path, **options: Any) -> ImagePlan:
    return ImagePlan(CONFIG, 3, HOW, {"d": path}, **options)


def write(folder: Path, kind: str) -> Path:
    if kind == "parquet":
        return write_parquet(folder / "a.parquet", IMAGES, LABELS, names=NAMES, group=7)
    if kind == "npz":
        return write_npz(folder / "a.npz", IMAGES, LABELS)
    return write_zip(folder / "a.zip", folders(IMAGES, LABELS))


@pytest.mark.parametrize("kind", ["parquet", "npz", "zip"])
@pytest.mark.parametrize("kept", [True, False])
def test_they_are_those_that_are_decoded_at_once(
    tmp_path: Path, kind: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(streaming, "ENCODED_BYTES", 1000)
    path = write(tmp_path, kind)
    whole = plan(path, held_out=["d"]).training("d", 20, 0, 5)
    streamed = plan(path, held_out=["d"]).streamed("d", 20, 5)
    if not kept:
        streamed._limit = 0
    for indices in ([0, 3, 19], [3, 3, 1]):
        first, second = whole.batch(indices), streamed.batch(indices)
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])
    assert streamed.texts == whole.texts
    assert streamed.decoded_once is kept
    assert streamed.facts() == {
        "images": 20,
        "sha256": plan(path, held_out=["d"]).streamed("d", 20, 5).digest,
    }


def test_a_damaged_image_is_named_when_it_is_wanted(tmp_path: Path) -> None:
    files = folders(IMAGES, LABELS)
    name = sorted(files)[3]
    files[name] = files[name][:60]
    found = plan(write_zip(tmp_path / "a.zip", files)).streamed("d", 40, 0)
    with Ahead(lambda step: found.batch([step]), 40) as ahead:
        with pytest.raises(DatasetInvalid, match="cannot be decoded"):
            [ahead.at(step) for step in range(40)]


def test_changes_follow_from_seed_epoch_and_number_alone(tmp_path: Path) -> None:
    how = Augmentation(crop_padding=0.125, flip=True, jitter=0.3, cutout=0.25)
    found = plan(write(tmp_path, "npz")).streamed("d", 40, 0)
    together = found.augmented([4, 7, 9], [1, 1, 2], how, 3)["pixel_values"]
    alone = plan(write(tmp_path, "npz")).streamed("d", 40, 0)
    assert torch.equal(alone.augmented([7], [1], how, 3)["pixel_values"][0], together[1])
    for epoch, seed in ((2, 3), (1, 4)):
        assert not torch.equal(found.augmented([7], [epoch], how, seed)["pixel_values"][0], together[1])
    assert torch.equal(
        found.augmented([7], [5], Augmentation(), 3)["pixel_values"], found.batch([7])["pixel_values"]
    )


def test_draws_are_uniform() -> None:
    drawn = np.array([uniforms(1, 0, number) for number in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # The mean of 4000 draws deviates by 0.0046, a correlation by 0.016: five times that.
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.023
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.08


def place_of(image: Any, changed: Any, size: int = 1) -> list[tuple[int, int, bool]]:
    """Every (down, right, flipped) that makes `changed` of an image padded by `size` zeros."""
    _, height, width = image.shape
    padded = np.zeros((3, height + 2 * size, width + 2 * size), np.uint8)
    padded[:, size:-size, size:-size] = image
    found = []
    for down in range(2 * size + 1):
        for right in range(2 * size + 1):
            part = padded[:, down : down + height, right : right + width]
            found += [
                (down, right, flip)
                for flip in (False, True)
                if (part[:, :, :: -1 if flip else 1] == changed).all()
            ]
    return found


def test_crops_and_flips_are_all_seen() -> None:
    image = np.random.default_rng(0).integers(1, 256, (3, 8, 8)).astype(np.uint8)
    how = Augmentation(crop_padding=0.125, flip=True)
    seen = [place_of(image, how.apply(image, 0, epoch, 0)) for epoch in range(400)]
    assert all(len(one) == 1 for one in seen)
    assert {one[0] for one in seen} == {(a, b, c) for a in range(3) for b in range(3) for c in (False, True)}


def test_jitter_is_torchvisions() -> None:
    chance = np.random.default_rng(1)
    image = chance.integers(0, 256, (3, 6, 7)).astype(np.uint8)
    drawn = uniforms(9, 2, 4)
    brightness, contrast, saturation = (0.6 + 0.8 * float(one) for one in drawn[3:6])
    pixels = torch.from_numpy(image).double() * brightness
    pixels = pixels.clamp(0, 255)
    grey = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    pixels = (contrast * pixels + (1 - contrast) * grey.mean()).clamp(0, 255)
    grey = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    pixels = (saturation * pixels + (1 - saturation) * grey).clamp(0, 255)
    found = Augmentation(jitter=0.4).apply(image, 9, 2, 4)
    assert np.abs(found.astype(int) - pixels.round().numpy().astype(int)).max() <= 1
    assert Augmentation(jitter=0.4).apply(image[:1], 9, 2, 4).shape == (1, 6, 7)


def test_cutout_covers_a_square_and_leaves_the_rest() -> None:
    image = np.random.default_rng(2).integers(0, 100, (3, 16, 16)).astype(np.uint8)
    before = image.copy()
    areas = set()
    for epoch in range(60):
        changed = Augmentation(cutout=0.25).apply(image, 0, epoch, 0)
        covered = (changed == 128).all(0)
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert (changed == image)[:, ~covered].all()
        areas.add(int(covered.sum()))
    assert max(areas) == 16
    assert min(areas) < 16
    assert np.array_equal(image, before)


def test_what_is_slow_to_make_overlaps_and_stays_in_order() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def make(step: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02 if step % 2 else 0.04)
        with lock:
            at_once -= 1
        return step

    with Ahead(make, 12, workers=3, depth=4) as ahead:
        found = []
        for step in range(12):
            found.append(ahead.at(step))
            time.sleep(0.03)
    assert found == list(range(12))
    assert most >= 2
    # One after another it would be 0.36 seconds of waiting.
    assert 0 < ahead.waited < 0.3


def test_no_more_is_made_than_may_be_held() -> None:
    made: list[int] = []
    with Ahead(lambda step: made.append(step) or step, 100, workers=1, depth=3) as ahead:
        ahead.at(0)
        time.sleep(0.05)
        assert max(made) <= 3
        assert ahead.at(50) == 50
        assert ahead.at(51) == 51
    assert max(made) <= 54
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]
    with pytest.raises(RuntimeError):
        ahead.at(60)
    with pytest.raises(IndexError):
        Ahead(lambda step: step, 3).at(3)


def test_errors_come_with_their_number_and_others_go_on() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise DatasetInvalid("image 2: damaged.")
        return step

    with Ahead(make, 5) as ahead:
        assert [ahead.at(0), ahead.at(1)] == [0, 1]
        with pytest.raises(DatasetInvalid, match="image 2"):
            ahead.at(2)
        assert ahead.at(3) == 3


def test_rows_keep_their_names() -> None:
    seen: list[Row] = []

    def decoded(row: Row) -> Any:
        seen.append(row)
        return np.zeros((3, 4, 4), np.uint8)

    class File:
        names = None

        def rows(self, wanted: Any = None) -> Any:
            yield Row(5, "image 5 of x.npz", np.ones((2, 3, 3), np.uint8), None)
            yield Row(7, "image 7 of x.npz", b"abc", None)

    found = streaming.stream("x.npz", File(), [7, 5], None, 3, HOW)
    found._decode = decoded
    found.batch([1, 0])
    assert [row.name for row in seen] == ["image 5 of x.npz", "image 7 of x.npz"]
    assert seen[1].data == b"abc"
    with pytest.raises(DatasetInvalid, match="changed while"):
        streaming.stream("x.npz", File(), [5, 6], None, 3, HOW)
