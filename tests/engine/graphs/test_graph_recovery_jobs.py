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
from compression.errors import DatasetInvalid, RecoveryImpossible, SpecificationInvalid
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
    _, before, _ = ran(job(tmp_path / "plain", "dense"))
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


def accuracy(place: Path, how: dict[str, Any], pixels: Any, labels: Any) -> float:
    """The share of images that ONNX Runtime puts into their class."""
    values = (pixels.astype(np.float64) / 255 - how["image_mean"]) / how["image_std"]
    found = answers(place, values.transpose(0, 3, 1, 2).astype(np.float32))
    return float((found.argmax(-1) == labels).mean())


def test_a_whole_job_that_distils(tmp_path: Path) -> None:
    wanted = {
        "recovery": recovery("distillation", 12, learning_rate=0.005, evaluate_every=4, feature_weight=0.5),
        "evaluation": {"dataset": "judged", "measure": [], "baselines": ["random"]},
    }
    folder = job(tmp_path, **wanted)
    write_npz(folder / "judged.npz", IMAGES[::-1], LABELS[::-1])
    datasets = {"images": "images.npz", "judged": "judged.npz"}
    write_job(folder, "model", datasets, json.loads((folder / "job.json").read_text())["specification"])
    report, artifact, recorder = ran(folder)
    assert recorder.stages == list(pipeline.STAGES)
    assert {"recovery_loss", "recovery_held_out_loss", "recovered/accuracy"} <= recorder.metrics.keys()
    quality, found = report["quality"], report["recovery"]
    assert quality["final"] == "recovered"
    for place, state in ((tmp_path / "model", "dense"), (artifact, "recovered")):
        right = accuracy(place / "network.onnx", HOW, IMAGES[::-1], np.array(LABELS[::-1]))
        assert quality[state]["accuracy"] == pytest.approx(right)
    assert (found["method"], found["steps"], found["loss"]) == ("distillation", 12, "distillation")
    assert found["training_samples"] + found["held_out_samples"] == 60
    assert 0 <= found["loading"]["waited_share"] < 1
    assert found["curve"][-1]["held_out"] < found["curve"][0]["held_out"]
    for count in ("macs", "parameters", "bytes"):
        assert report["cost"]["recovered"][count] == report["cost"]["pruned"][count]
    assert report["verification"]["ok"]
    # The same images judge and teach, and the report says so.
    assert report["data"]["overlap"]["recovery"] == 60
    assert any("recovery images" in line for line in recorder.messages)
    assert any("Recovery (distillation) changed accuracy" in note for note in report["notes"])
    page = (tmp_path / "work" / "report.html").read_text()
    assert "waiting for images" in page
    assert (
        "recovery: distillation, 12 steps of 8 images, loss distillation"
        in (artifact / "README.md").read_text()
    )
    manifest = json.loads((artifact / "secateur" / "manifest.json").read_text())
    assert set(manifest["figures"]["quality"]) == {"dense", "pruned", "recovered"}
    assert "seconds" not in json.dumps(manifest["figures"])


def test_labels_of_an_image_folder_train(tmp_path: Path) -> None:
    wanted = {"recovery": recovery("distillation", 4, loss="task", optimiser="adamw")}
    report, artifact, _ = ran(job(tmp_path, kind="zip", **wanted))
    assert report["recovery"]["loss"] == "task"
    assert report["recovery"]["options"]["learning_rate"] == 0.001
    # A fifth is held out for the evaluation, and nothing of it trained on.
    assert report["data"]["evaluation"]["images"] == 12
    assert report["data"]["recovery"]["images"] <= 48
    assert report["data"]["overlap"]["recovery"] == 0
    assert (artifact / "config.json").exists()


def test_killed_jobs_go_on_and_give_the_same_bytes(tmp_path: Path) -> None:
    options = {"save_every": 2, "evaluate_every": 3, "flip": True, "cutout": 0.2}
    folder = job(tmp_path, "dense", recovery=recovery("distillation", 7, **options))
    recorder = Recorder()
    artifact = pipeline.run(request(folder, folder / "whole"), recorder).artifact
    assert recorder.steps == [
        "baseline", "units", "recovery-statistics", "recovery-000002", "recovery-000004", "recovery-000006",
        "recovery-000007", "pruned-quality", "recovered-quality",
    ]  # fmt: skip
    # Renames: one each of the first two, then tensors and data of each step. The seventh leaves step 4 half.
    for count, after in ((4, "recovery-000002"), (7, "recovery-000004")):
        work = tmp_path / str(count)
        assert run_and_kill(folder, work, "after_checkpoint_rename", count) == -signal.SIGKILL
        recorder = Recorder()
        outcome = pipeline.run(request(folder, work), recorder)
        assert recorder.steps[0] == after
        assert hashes(outcome.artifact) == hashes(artifact)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = job(tmp_path, kind="zip", evaluation={"measure": []}, recovery=recovery("distillation", 8))
    files = folders(IMAGES, LABELS, CLASSES)
    name = sorted(files)[5]
    files[name] = encoded(IMAGES[0])[:200]
    write_zip(folder / "images.zip", files)
    with pytest.raises(DatasetInvalid, match="cannot be decoded"):
        ran(folder)


def test_batches_of_a_fixed_number_of_images_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    folder = job(tmp_path, recovery=recovery("distillation"))
    place = folder / "model" / "network.onnx"
    model = onnx.load(place)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, place)
    recorder = Recorder()
    with pytest.raises(RecoveryImpossible, match="3 images at once"):
        pipeline.run(request(folder, folder / "work"), recorder)
    assert recorder.stages[-1] == "inspect"


def refused(folder: Path) -> list[tuple[str, str]]:
    """The code and the pointer of each fault of a job."""
    with pytest.raises(SpecificationInvalid) as caught:
        request(folder, folder / "work")
    return [(fault.code, fault.pointer) for fault in caught.value.errors]


def test_what_a_recovery_needs_is_asked_for_before_a_job(tmp_path: Path) -> None:
    def one(tag: str, name: str = "residual", **wanted: Any) -> Path:
        return job(tmp_path / tag, name, **{"evaluation": {"measure": []}, **wanted})

    other = {"recovery": {"method": "distillation"}, "preprocessing": None}
    assert refused(one("other", "recurrent", **other)) == [("recovery_unsupported", "/recovery/method")]
    assert refused(one("none", recovery={"method": "distillation"})) == [
        ("recovery_data_missing", "/recovery/dataset")
    ]
    assert refused(one("lora", recovery={"method": "lora", "dataset": "images"})) == [
        ("recovery_unknown", "/recovery/method")
    ]
    assert refused(one("option", recovery=recovery("distillation", crop_padding=2, rank=3))) == [
        ("unknown_key", "/recovery/options/rank"), ("option_invalid", "/recovery/options/crop_padding"),
    ]  # fmt: skip
    unlabelled = one("labels", recovery=recovery("distillation", loss="task"))
    write_npz(unlabelled / "images.npz", IMAGES, None)
    assert refused(unlabelled) == [("labels_missing", "/recovery/options/loss")]
    how = one("how", recovery=recovery("distillation"), preprocessing=None)
    assert refused(how) == [("preprocessing_missing", "/preprocessing")]


def test_the_calibration_dataset_teaches_where_no_other_is_named(tmp_path: Path) -> None:
    wanted = {"calibration": {"dataset": "images", "samples": 16}, "recovery": {"method": "distillation"}}
    found = request(job(tmp_path, **wanted), tmp_path / "work").specification
    assert found.recovery.dataset == "images"
    assert found.evaluation.holdout is True
    assert found.recovery.options["optimiser"] == "sgd"
    assert request(job(tmp_path / "again", **wanted), tmp_path / "work").specification == found


def test_what_a_schedule_trained_is_recovered_after_the_cut(tmp_path: Path) -> None:
    wanted = {
        "options": {"schedule": "iterative", "steps": 4, "batch_size": 8},
        "calibration": {"dataset": "images", "samples": 16},
        "recovery": recovery("distillation", 4),
    }
    report, _, recorder = ran(job(tmp_path, **wanted))
    assert recorder.steps.index("trained") < recorder.steps.index("recovery-000004")
    assert report["recovery"]["steps"] == 4
    assert report["quality"]["final"] == "recovered"
    assert report["verification"]["ok"]
