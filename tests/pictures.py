"""Small pictures of three classes, the same on every run, in every container, and models that have learnt
them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("no", "perhaps", "yes")
_COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
Pictures = NDArray[np.uint8]


def pictures(count: int = 96, seed: int = 0, height: int = 20, width: int = 28) -> tuple[Pictures, list[int]]:
    """uint8 [count, height, width, 3] and class numbers: noise with a patch of the colour of the class."""
    chance = np.random.default_rng(seed)
    images = chance.integers(60, 180, (count, height, width, 3)).astype(np.uint8)
    labels = [number % 3 for number in range(count)]
    for image, label in zip(images, labels, strict=True):
        top, left = chance.integers(0, height - 8), chance.integers(0, width - 8)
        patch = _COLOURS[label] + chance.integers(-30, 30, (8, 8, 3))
        image[top : top + 8, left : left + 8] = np.clip(patch, 0, 255)
    return images, labels


def encoded(image: Pictures, format: str = "PNG") -> bytes:
    """One image as a file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format)
    return stream.getvalue()


def write_npz(path: Path, images: Pictures, labels: Sequence[int] | None, *, packed: bool = False) -> Path:
    """An npz file of `images` and `labels`."""
    arrays: dict[str, Any] = {"images": images}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def write_parquet(
    path: Path,
    images: Pictures,
    labels: Sequence[int | str] | None,
    *,
    names: Sequence[str] | None = None,
    bare: bool = False,
    group: int = 20,
) -> Path:
    """A parquet file as Hugging Face's datasets write it; `bare`: a column of bytes instead of a
    structure."""
    import pyarrow
    from pyarrow import parquet

    data = [encoded(image) for image in images]
    columns: dict[str, Any] = {"image": data if bare else [{"bytes": item, "path": None} for item in data]}
    if labels is not None:
        columns["label"] = list(labels)
    table = pyarrow.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        facts = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": facts})
    parquet.write_table(table, path, row_group_size=group)
    return path


def folders(
    images: Pictures, labels: Sequence[int], names: Sequence[str] = NAMES, format: str = "PNG"
) -> dict[str, bytes]:
    """Files of an image folder by name, one class after another."""
    order = sorted(range(len(labels)), key=lambda number: (names[labels[number]], number))
    end = format.lower()
    return {f"data/{names[labels[n]]}/{n}.{end}": encoded(images[n], format) for n in order}


def write_zip(path: Path, files: dict[str, bytes], *, packed: bool = True) -> Path:
    """A zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    """A plain tar archive."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def learnt_model(folder: Path, case: str, steps: int = 60, **changes: Any) -> Path:
    """A tiny model of the stock class that tells the pictures apart, saved with its preprocessor's
    settings."""
    import torch

    from compression.loading.images.pixels import normalise
    from compression.preprocessing import of_model
    from tests.tiny_families import tiny_model

    model = tiny_model(case, **changes)
    model.apply(model._init_weights)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.08)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    images, labels = pictures(240, seed=7, height=24, width=24)
    inputs = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), of_model(24, 24))
    target = torch.tensor(labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for step in range(steps):
        chosen = torch.arange(step * 48, step * 48 + 48) % len(inputs)
        loss = torch.nn.functional.cross_entropy(model(pixel_values=inputs[chosen]).logits, target[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
