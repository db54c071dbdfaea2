"""Jobs on graphs without data, with classes that weigh the same, and what their reports say of fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compression.errors import DatasetInvalid, SpecificationInvalid, TargetUnreachable
from compression.graphs.batches import gaussian_batches
from compression.graphs.graph import read_graph
from compression.recipes import recipes
from compression.report.graphs import graph as section
from compression.report.notes import notes
from compression.report.schema import validate
from compression.stages.graphs.account import told
from compression.stages.graphs.statistics import synthetic
from tests.engine.graphs.exports import stored
from tests.engine.graphs.test_graph_data_jobs import SEEN
from tests.engine.graphs.test_graph_jobs import HOW, answers, job, ran
from tests.engine.graphs.test_graph_reconstruction import normed
from tests.engine.jobs import hashes

MADE: dict[str, Any] = {"data": "synthetic", "synthetic_samples": 24}
JUDGED = {"evaluation": {"dataset": "images", "measure": []}, "preprocessing": HOW}


def test_obspa_without_data(tmp_path: Path) -> None:
    """On a graph of sequences, which no dataset fits: nearer to the dense outputs than without the fit."""
    draws = np.random.default_rng(1).standard_normal((16, 3, 16, 16)).astype(np.float32)
    errors = {}
    for update in ("none", "least-squares"):
        folder = job(tmp_path / update, recipe="obspa", options={**MADE, "update": update})
        _, artifact, _ = ran(folder)
        dense = answers(folder / "model" / "network.onnx", draws)
        errors[update] = float(np.square(answers(artifact / "network.onnx", draws) - dense).mean())
    assert errors["least-squares"] < 0.7 * errors["none"]
    again = ran(job(tmp_path / "again", recipe="obspa", options=MADE))[1]
    assert hashes(again) == hashes(artifact)


def test_graphs_of_other_tasks_take_recipes_without_data(tmp_path: Path) -> None:
    report, _, _ = ran(job(tmp_path / "one", "mixer", recipe="obspa", target={"macs": 0.7}, options=MADE))
    assert report["graph"]["fits"]["fitted_count"] > 0
    report, _, _ = ran(job(tmp_path / "two", "recurrent", recipe="udfc", target={"macs": 0.8}))
    assert report["graph"]["fits"]["left"][0]["reason"].endswith("inside the operator")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"recipe": "taylor", "options": MADE}, "synthetic inputs have no labels"),
        ({"recipe": "obspa", "options": {**MADE, "class_weights": "balanced"}}, "have no classes"),
        (
            {"recipe": "obspa", "options": MADE, "calibration": {"dataset": "images"}},
            "no calibration images are read",
        ),
    ],
)
def test_what_synthetic_inputs_cannot_give_is_refused(
    tmp_path: Path, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecificationInvalid, match=words):
        ran(job(tmp_path, **{**JUDGED, **wanted}))


def test_inputs_that_are_made_up() -> None:
    graph = read_graph(stored("residual"))
    made = synthetic(graph, 70, {}, 3)
    assert [len(one.inputs["x"]) for one in made] == [32, 32, 32]
    white = gaussian_batches(graph, 3, 32, {}, 3)
    pixels, noise = (torch.cat([one.inputs["x"] for one in some]) for some in (made, white))
    assert abs(float(pixels.var()) - 1) < 0.1
    assert abs(float(pixels.mean())) < 0.1
    power = (
        np.abs(np.fft.fft2(pixels.double().numpy())) ** 2 / np.abs(np.fft.fft2(noise.double().numpy())) ** 2
    )
    for row, column in ((0, 1), (2, 0), (3, 4), (8, 8)):
        # of frequency (0, 1), the slowest but the mean: power falls with the square of the frequency
        wanted = power[..., 0, 1] / (row**2 + column**2)
        np.testing.assert_allclose(power[..., row, column], wanted, rtol=1e-3)
    sequences = read_graph(stored("recurrent"))
    drawn = gaussian_batches(sequences, 1, 8, {}, 3)[0].inputs["x"]
    assert torch.equal(synthetic(sequences, 8, {}, 3)[0].inputs["x"], drawn)
    remembered = synthetic(normed(), 8, {}, 3)  # it has a BatchNormalization: inputs that it remembers
    assert not (remembered[0].inputs["x"] == gaussian_batches(normed(), 1, 8, {}, 3)[0].inputs["x"]).all()
    model = onnx.ModelProto()
    model.CopyFrom(stored("residual"))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(DatasetInvalid, match="'x' takes whole numbers"):
        synthetic(read_graph(model), 8, {}, 0)


def test_the_least_seen_class_weighs_as_much_as_the_others(tmp_path: Path) -> None:
    """Labels of the images are known to the job: balanced weights change which channels go."""
    chosen = {}
    for how in ("none", "balanced"):
        folder = job(tmp_path / how, recipe="group-fisher", options={"class_weights": how}, **SEEN)
        images = dict(np.load(folder / "images.npz"))
        images["labels"] = np.where(np.arange(40) < 34, 0, images["labels"])
        np.savez(folder / "images.npz", **images)
        _, artifact, _ = ran(folder)
        chosen[how] = (artifact / "network.onnx").read_bytes()
    assert chosen["none"] != chosen["balanced"]


@pytest.mark.parametrize(
    "recipe",
    ["attention-maps", "beta-rank", "group-fisher", "group-lamp", "nvit", "oba", "removal", "udfc"],
)
def test_every_new_recipe_runs(tmp_path: Path, recipe: str) -> None:
    seen = SEEN if recipes[recipe].needs else JUDGED
    report, _, _ = ran(job(tmp_path, recipe=recipe, **seen))
    assert report["cost"]["pruned"]["macs"] <= 0.5 * report["cost"]["dense"]["macs"]
    assert report["verification"]["ok"]


def test_vbp_takes_hidden_neurons_alone_and_moves_their_means(tmp_path: Path) -> None:
    vbp = recipes["vbp-vit"]
    assert vbp.needs == {"calibration"}
    report, artifact, _ = ran(job(tmp_path / "one", "vit", recipe="vbp-vit", target={"macs": 0.8}, **SEEN))
    kept = {one["name"]: one["kept"] for one in report["graph"]["groups"]}
    dense = {one["name"]: one["dense"] for one in report["graph"]["groups"]}
    hidden = next(name for name in dense if dense[name] == 24)
    assert kept[hidden] < 24
    assert all(kept[name] == dense[name] for name in dense if name != hidden)
    assert report["graph"]["fits"]["fitted"][0]["how"] == "bias"
    weights = [numpy_helper.to_array(one) for one in onnx.load(artifact / "network.onnx").graph.initializer]
    assert any(one.shape == (kept[hidden], 16) for one in weights)
    with pytest.raises(TargetUnreachable, match=r"options\.units mlp takes hidden neurons"):
        ran(job(tmp_path / "two", recipe="vbp-vit", **SEEN))


def test_the_report_names_operators_that_were_fitted_and_those_that_were_not(tmp_path: Path) -> None:
    report, _, recorder = ran(job(tmp_path, "unet", recipe="obspa", options=MADE))
    fits = report["graph"]["fits"]
    assert fits["update"] == "least-squares"
    assert {one["how"] for one in fits["fitted"]} == {"least-squares", "bias"}  # transposed: its means
    assert any("ConvTranspose" in one["operator"] and one["how"] == "bias" for one in fits["fitted"])
    validate(report)
    page = section(report)
    assert f"changed ({fits['fitted_count']})" in page
    assert f"{fits['fitted_count']} operators were fitted." in recorder.messages
    assert "were not changed" not in page
    left = {**fits, "left": [{"operator": "Conv 'a'", "reason": "it shares its weight"}], "left_count": 1}
    page = section({**report, "graph": {**report["graph"], "fits": left}})
    assert "were not changed (1)" in page
    assert "it shares its weight" in page
    assert told({**left, "fitted_count": 1})[:2] == [
        "1 operator was fitted.",
        "Conv 'a' was not fitted: it shares its weight.",
    ]
    assert ran(job(tmp_path / "plain"))[0]["graph"]["fits"] is None


@pytest.mark.parametrize(
    ("uncut", "words"),
    [
        ([(10, "it is the output")], "10 channels could not be removed, because it is the output."),
        ([(1, "it is the output")], "1 channel could not be removed, because it is the output."),
        (
            [(4, "A"), (2, "B"), (3, "A")],
            "9 channels could not be removed, 7 of them because A.",
        ),
    ],
)
def test_notes_say_what_stayed(tmp_path: Path, uncut: list[tuple[int, str]], words: str) -> None:
    report, _, _ = ran(job(tmp_path))
    listed = [{"tensor": "w", "axis": 0, "channels": count, "reason": reason} for count, reason in uncut]
    changed = {**report, "graph": {**report["graph"], "uncut": listed}}
    assert words in notes(changed, "channel")
