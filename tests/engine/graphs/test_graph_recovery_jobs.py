"""Jobs on graphs that recover what was cut: whole, killed, and refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compression import pipeline
from compression.errors import DatasetInvalid, SpecificationInvalid
from tests.engine.graphs.test_graph_jobs import EXPORTED, HOW, answers, ran
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import encoded, folders, write_npz, write_zip

CLASSES = ("a", "b", "c", "d", "e")
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
LABELS = [number % 5 for number in range(60)]


def job(folder: Path, name: str = "residual", kind: str = "npz", **wanted: Any) -> Path:
    """A folder with a job that recovers; gives the folder."""
    (folder / "model").mkdir(parents=True)
    shutil.copyfile(EXPORTED / f"{name}.onnx", folder / "model" / "network.onnx")
    if kind == "npz":
        file = write_npz(folder / "images.npz", IMAGES, LABELS)
    else:
        names = {str(number): name for number, name in enumerate(CLASSES)}
        (folder / "model" / "config.json").write_text(json.dumps({"id2label": names}))
        file = write_zip(folder / "images.zip", folders(IMAGES, LABELS, CLASSES))
    specification = {
        "recipe": "group-l1",
        "target": {"macs": 0.5},
        "evaluation": {"dataset": "images", "measure": []},
        "preprocessing": HOW,
        **wanted,
    }
    write_job(folder, "model", {"images": file.name}, specification)
    return folder


def recovery(method: str, steps: int = 6, **options: Any) -> dict[str, Any]:
    options = {"batch_size": 8, **options}
    return {"method": method, "dataset": "images", "budget": {"steps": steps}, "options": options}


def test_statistics_are_measured_anew(tmp_path: Path) -> None:
    folder = job(tmp_path, "dense", recovery=recovery("batchnorm", 5))
    report, artifact, _ = ran(folder)
    plain, before, _ = ran(job(tmp_path / "plain", "dense"))
    assert report["recovery"]["method"] == "batchnorm"
    assert report["recovery"]["training_samples"] == 40
    assert report["data"]["recovery"]["images"] == 40
    assert report["data"]["overlap"]["recovery"] == 0
    old, new = (onnx.load(path / "network.onnx").graph for path in (before, artifact))
    changed = {
        first.name
        for first, second in zip(old.initializer, new.initializer, strict=True)
        if not np.array_equal(numpy_helper.to_array(first), numpy_helper.to_array(second))
    }
    statistics = {
        name for node in old.node if node.op_type == "BatchNormalization" for name in node.input[3:5]
    }
    assert changed == statistics
    assert "recovery: batchnorm, 5 steps of 8 images" in (artifact / "README.md").read_text()


def test_folded_norms_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(SpecificationInvalid, match="moments"):
        ran(job(tmp_path, recovery=recovery("batchnorm")))
