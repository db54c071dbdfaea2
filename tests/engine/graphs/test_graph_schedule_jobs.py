"""Jobs whose graphs are trained while units are prepared to go: the whole way, resuming, refusals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compression import pipeline
from compression.errors import DatasetInsufficient, DatasetInvalid, SpecificationInvalid, TargetUnreachable
from compression.graphs.schedules import SCHEDULES
from compression.recipes import recipes
from tests.engine.graphs.test_graph_jobs import HOW, answers, changed, job, ran
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import write_npz

RECIPES = ("autobot", "depgraph", "growing-reg", "mask-sparsity", "oto", "smcp")
SEEN: dict[str, Any] = {
    "evaluation": {"dataset": "images", "holdout": True, "measure": []},
    "preprocessing": HOW,
    "calibration": {"dataset": "images", "samples": 24},
}
SHORT = {"steps": 6, "batch_size": 8, "rounds": 2}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_that_trains_gives_a_graph_back(tmp_path: Path, recipe: str) -> None:
    report, artifact, recorder = ran(job(tmp_path, recipe=recipe, options=SHORT, **SEEN))
    assert report["cost"]["pruned"]["macs"] <= 0.5 * report["cost"]["dense"]["macs"]
    assert report["verification"]["ok"]
    assert report["graph"]["exactness"] <= 1e-5
    assert "trained" in recorder.steps
    assert recipes[recipe].needs == {"calibration"}
    pixels = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    assert np.isfinite(answers(artifact / "network.onnx", pixels)).all()


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"bytes": 0.6}, {"sparsity": 0.4}])
def test_rounds_with_a_criterion_of_data_meet_every_target(tmp_path: Path, target: dict[str, Any]) -> None:
    options = {**SHORT, "schedule": "iterative", "criterion": "taylor"}
    report, _, recorder = ran(job(tmp_path, recipe="taylor", target=target, options=options, **SEEN))
    dense, pruned = report["cost"]["dense"], report["cost"]["pruned"]
    ratio = {
        "macs": pruned["macs"] / dense["macs"],
        "bytes": pruned["bytes"] / dense["bytes"],
        "sparsity": pruned["parameters"] / dense["parameters"],
    }
    asked = {"macs": 0.5, "bytes": 0.6, "sparsity": 0.6}
    assert all(ratio[name] <= asked[name] for name in target)
    assert sum("of 2: " in line for line in recorder.messages) == 2


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {"steps": 120, "batch_size": 4}
    folder = job(tmp_path, recipe="growing-reg", options=options, **SEEN)
    _, artifact, _ = ran(folder)
    # while it trains, behind the baseline's step and the first checkpoint; behind the kept step
    for point, count in (("after_checkpoint_rename", 4), ("mid_block", 1)):
        work = tmp_path / point
        assert run_and_kill(folder, work, point, count) == -signal.SIGKILL
        left = {path.stem for path in work.rglob("*.json")}
        assert ("trained" in left) == (point == "mid_block")
        assert ("training-growing-reg-000050" in left) == (point != "mid_block")
        recorder = Recorder()
        outcome = pipeline.run(request(folder, work), recorder)
        assert hashes(outcome.artifact) == hashes(artifact)
        assert ("trained" in recorder.steps) == (point != "mid_block")
        assert "training-growing-reg-000050" not in recorder.steps


def test_checkpoints_are_gone_when_the_step_is_kept(tmp_path: Path) -> None:
    folder = job(tmp_path, recipe="growing-reg", options={"steps": 60, "batch_size": 4}, **SEEN)
    _, _, recorder = ran(folder)
    assert any(step.startswith("training-") for step in recorder.steps)
    assert not [path for path in (folder / "work").rglob("*training-*")]


def test_weights_that_stay_were_trained(tmp_path: Path) -> None:
    """A penalty of zero and the same units: only training is left of the schedule."""
    plain, kept, _ = ran(job(tmp_path / "plain", recipe="group-l1", **SEEN))
    options = {**SHORT, "penalty": 0.0}
    trained, after, _ = ran(job(tmp_path / "trained", recipe="growing-reg", options=options, **SEEN))
    assert trained["cost"]["pruned"]["macs"] == plain["cost"]["pruned"]["macs"]
    assert (kept / "secateur" / "units.json").read_bytes() == (after / "secateur" / "units.json").read_bytes()
    assert (kept / "network.onnx").read_bytes() != (after / "network.onnx").read_bytes()


def test_the_baseline_is_of_the_graph_as_it_came(tmp_path: Path) -> None:
    evaluation = {**SEEN["evaluation"], "baselines": ["magnitude"]}
    found = [
        ran(job(tmp_path / name, recipe=name, options=options, **{**SEEN, "evaluation": evaluation}))[0]
        for name, options in (("group-l1", {}), ("growing-reg", SHORT))
    ]
    assert found[0]["baselines"] == found[1]["baselines"]


@pytest.mark.parametrize("recipe", ["growing-reg", "group-l1"])
def test_without_images_it_is_refused(tmp_path: Path, recipe: str) -> None:
    wanted = {name: part for name, part in SEEN.items() if name != "calibration"}
    options = {} if recipe == "growing-reg" else {"schedule": "iterative"}
    with pytest.raises(SpecificationInvalid, match="looks at images"):
        ran(job(tmp_path, recipe=recipe, options=options, **wanted))


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationInvalid, match="'one-shot' trains nothing"):
        ran(job(tmp_path / "steps", options={"steps": 5}, **SEEN))
    with pytest.raises(SpecificationInvalid, match="'gates' scores units by itself"):
        ran(job(tmp_path / "own", recipe="autobot", options={"criterion": "taylor"}, **SEEN))


def unjudged(folder: Path, labels: list[int] | None, count: int, **wanted: Any) -> Path:
    """A job without evaluation, on images of its own."""
    job(folder)
    images = np.random.default_rng(3).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    write_npz(folder / "images.npz", images, labels)
    rest = {"target": {"macs": 0.5}, "evaluation": {"measure": []}, "preprocessing": HOW}
    wanted = {**rest, "calibration": SEEN["calibration"], **wanted}
    write_job(folder, "model", {"images": "images.npz"}, wanted)
    return folder


def test_images_without_labels_follow_the_dense_graph(tmp_path: Path) -> None:
    report, _, _ = ran(unjudged(tmp_path / "auto", None, 24, recipe="oto", options=SHORT))
    assert report["verification"]["ok"]
    with pytest.raises(DatasetInvalid, match=r'options\.loss "labels" needs .* take "dense"'):
        ran(unjudged(tmp_path / "labels", None, 24, recipe="oto", options={**SHORT, "loss": "labels"}))


def test_a_target_beyond_reach_is_told_before_training(tmp_path: Path) -> None:
    folder = unjudged(tmp_path, None, 24, recipe="autobot", options=SHORT, target={"macs": 0.001})
    recorder = Recorder()
    with pytest.raises(TargetUnreachable, match=r"at least .* stay"):
        pipeline.run(request(folder, folder / "work"), recorder)
    assert not recorder.steps


def test_one_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DatasetInsufficient, match="two calibration images"):
        ran(unjudged(tmp_path, None, 1, recipe="oto", options=SHORT))


def test_a_fixed_batch_is_not_trained(tmp_path: Path) -> None:
    def fix(graph: onnx.GraphProto) -> None:
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    folder = changed(unjudged(tmp_path, None, 24, recipe="oto", options=SHORT), fix)
    with pytest.raises(DatasetInvalid, match="batches of 1 and no others"):
        ran(folder)


def test_every_schedule_that_trains_says_that_it_needs_images() -> None:
    assert {one.name for one in SCHEDULES if not one.trains} == {"one-shot"}
    assert all(recipes[name].axes["schedule"] != "one-shot" for name in RECIPES)
