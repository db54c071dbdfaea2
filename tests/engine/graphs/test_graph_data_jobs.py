"""Jobs on graphs whose criteria or updates look at images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compression.errors import SpecificationInvalid
from compression.graphs.criteria import CRITERIA
from compression.recipes import recipes
from compression.recipes.channels import UPDATES
from tests.engine.graphs.test_graph_jobs import HOW, answers, job, ran
from tests.engine.jobs import hashes

IMAGES = {"evaluation": {"dataset": "images", "holdout": True, "measure": []}, "preprocessing": HOW}
SEEN = {**IMAGES, "calibration": {"dataset": "images", "samples": 16}}
READING = sorted(one.name for one in CRITERIA if one.needs)


@pytest.mark.parametrize("criterion", READING)
def test_every_criterion_that_reads_data_runs(tmp_path: Path, criterion: str) -> None:
    report, _, _ = ran(job(tmp_path, options={"criterion": criterion}, **SEEN))
    assert report["cost"]["pruned"]["macs"] <= 0.5 * report["cost"]["dense"]["macs"]
    assert report["verification"]["ok"]


@pytest.mark.parametrize("update", sorted(set(UPDATES) - {"none"}))
def test_every_update_changes_weights_and_no_shapes(tmp_path: Path, update: str) -> None:
    plain, kept, _ = ran(job(tmp_path / "plain", **SEEN))
    fitted, changed, recorder = ran(job(tmp_path / "fitted", options={"update": update}, **SEEN))
    assert fitted["cost"]["pruned"]["macs"] == plain["cost"]["pruned"]["macs"]
    assert (kept / "network.onnx").read_bytes() != (changed / "network.onnx").read_bytes()
    assert fitted["graph"]["exactness"] <= 1e-5
    assert any("were fitted" in line for line in recorder.messages)


def test_obspa_comes_nearer_to_the_dense_outputs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)
    errors = {}
    for recipe in ("group-l2", "obspa"):
        _, artifact, _ = ran(job(tmp_path / recipe, recipe=recipe, **SEEN))
        dense = answers(tmp_path / recipe / "model" / "network.onnx", pixels)
        errors[recipe] = float(np.square(answers(artifact / "network.onnx", pixels) - dense).mean())
    assert errors["obspa"] < errors["group-l2"]


def test_the_same_specification_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (ran(job(tmp_path / name, recipe="obspa", **SEEN))[1] for name in ("one", "two"))
    assert hashes(first) == hashes(second)


def test_without_calibration_it_is_refused() -> None:
    assert recipes["obspa"].needs == {"calibration"}
    assert not recipes["group-l1"].needs


@pytest.mark.parametrize("wanted", [{"recipe": "taylor"}, {"options": {"update": "moments"}}])
def test_a_job_without_calibration_says_so(tmp_path: Path, wanted: dict[str, object]) -> None:
    with pytest.raises(SpecificationInvalid, match="looks at images"):
        ran(job(tmp_path, **wanted, **IMAGES))
