"""Models that have learnt to tell pictures apart, pruned with pictures: every recipe, whole jobs,
resuming."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from compression import pipeline
from compression.anatomy import Inspection
from compression.checkpoint import Store
from compression.evaluation import stock
from compression.gradients import exact, single_sequences
from compression.loading.admission import admit_model, folder_sources
from compression.loading.architectures import ARCHITECTURES
from compression.loading.images.plan import ImagePlan
from compression.loading.streamed import StreamedModel
from compression.preprocessing import of_model
from compression.stages import data as datasets
from compression.stages import load, prune
from compression.token_weights import received_attention
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import (
    NAMES,
    folders,
    learnt_model,
    pictures,
    write_npz,
    write_parquet,
    write_tar,
    write_zip,
)

VIT, DEIT = "ViTForImageClassification", "DeiTForImageClassification"
SWIN = "SwinForImageClassification"
IMAGES, LABELS = pictures(96)
pytestmark = pytest.mark.timeout(600)  # the first test with a model also trains it
# Images of 24 pixels like those of the others.
CHANGES: dict[str, dict[str, Any]] = {SWIN: {"image_size": 24, "patch_size": 2, "window_size": 3}}


class Learnt(dict[str, Path]):
    """The folder of a learnt model by architecture, made when it is first asked for; data lies beside it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self._factory = factory

    def __missing__(self, case: str) -> Path:
        root = self[case] = self._factory.mktemp(case)
        learnt_model(root / "model", case, **CHANGES.get(case, {}))
        write_npz(root / "a.npz", IMAGES, LABELS)
        return root


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return Learnt(tmp_path_factory)


def spec(recipe: str, **parts: Any) -> dict[str, Any]:
    calibration = {"dataset": "dst_a", "samples": 24, **parts.pop("calibration", {})}
    evaluation = {"measure": [], **parts.pop("evaluation", {})}
    target = {"layers": 1} if recipe == "layer-drop" else {"sparsity": 0.5}
    return {"recipe": recipe, "target": target, "calibration": calibration, "evaluation": evaluation, **parts}


RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("wanda", {}),
    ("wanda", {"token_weight": "attention"}),
    ("wanda", {"token_weight": "norm", "update": ["bias-compensation"]}),
    ("wanda", {"criterion": "gradient"}),
    ("wanda", {"criterion": "fisher"}),
    ("wanda", {"criterion": "movement"}),
    ("wanda", {"gradient": "zeroth-order", "criterion": "gblm"}),
    ("wanda", {"update": ["least-squares"]}),
    ("wanda", {"update": ["combinatorial"]}),
    ("ria", {}),
    ("sparsegpt", {}),
    ("alps", {}),
    ("dsnot", {}),
    ("obs-exact", {}),
    ("gblm", {}),
    ("owl", {}),
    ("dlp", {}),
    ("ecoflap", {}),
    ("evopress", {"evolution_generations": 2}),
    ("distortion-dp", {}),
    ("layer-drop", {}),
]
# Windows give some inputs more tokens than others; one recipe for each kind of statistic and of allocation.
FOR_SWIN: list[tuple[str, dict[str, Any]]] = [
    ("wanda", {"update": ["bias-compensation"]}),
    ("sparsegpt", {}),
    ("gblm", {}),
    ("owl", {}),
    ("distortion-dp", {}),
    ("ecoflap", {}),
]


@pytest.mark.parametrize(
    ("recipe", "options"), RECIPES, ids=[f"{name}-{list(o.values())}" for name, o in RECIPES]
)
def test_every_recipe_with_pictures(
    recipe: str, options: dict[str, Any], learnt: Learnt, tmp_path: Path
) -> None:
    root = learnt[DEIT if recipe in ("sparsegpt", "owl", "gblm") else VIT]
    check_recipe(recipe, options, root, tmp_path)


def check_recipe(recipe: str, options: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """Calibrated, pruned to the count, and still far better than guessing on pictures held out."""
    write_job(root, "model", {"dst_a": "a.npz"}, spec(recipe, options=options))
    loaded = load.load(request(root, tmp_path), Recorder(), lambda name: None)
    data = datasets.open_data(loaded)
    datasets.calibrate(loaded, data)
    assert data.calibration is not None
    assert data.calibration.sequences == 24
    pruned = prune.prune(loaded, data)
    if recipe == "layer-drop":
        assert pruned.kept is not None
        assert len(pruned.kept) == 2
    else:
        source, sites = pruned.source(loaded), loaded.inspection.sites
        zeros = sum(int((source.tensor(site.name) == 0).sum()) for site in sites)
        assert abs(zeros - sum(site.size for site in sites) // 2) <= len(sites)
        assert len(pruned.sites) == len(sites)
    judged = prune.judge(loaded, data.evaluation, pruned)
    assert judged is not None
    assert judged["counts"] == {"batches": 2, "images": 19}
    # At trained weights the mean gradient is mostly noise, so movement hardly works without training.
    assert judged["metrics"]["accuracy"] >= (0.6 if options.get("criterion") != "movement" else 0.2)
    assert judged["divergence"]["mean_kl"] >= 0
    assert judged["divergence"]["positions"] == 19


def batches(root: Path) -> list[dict[str, torch.Tensor]]:
    plan = ImagePlan({"id2label": dict(enumerate(NAMES))}, 3, of_model(24, 24), {"a": root / "a.npz"})
    return list(plan.calibration("a", 5, 0, 0, 3).batches)


@pytest.mark.parametrize(("recipe", "options"), FOR_SWIN, ids=[name for name, _ in FOR_SWIN])
def test_stages_of_several_widths_with_pictures(
    recipe: str, options: dict[str, Any], learnt: Learnt, tmp_path: Path
) -> None:
    check_recipe(recipe, options, learnt[SWIN], tmp_path)


@pytest.mark.parametrize("case", [VIT, DEIT])
@pytest.mark.parametrize("labelled", [True, False])
def test_gradients_are_those_of_the_whole_model(
    case: str, labelled: bool, learnt: Learnt, tmp_path: Path
) -> None:
    folder, given = learnt[case] / "model", batches(learnt[case])
    given = given if labelled else [{"pixel_values": batch["pixel_values"]} for batch in given]
    sites = Inspection.from_json(admit_model(folder_sources(folder)).inspection).sites
    singles = single_sequences(given, 4)
    assert [one["pixel_values"].shape[0] for one in singles] == [1] * 4
    files = exact(
        lambda: StreamedModel(folder),
        sites,
        singles,
        Store(tmp_path, "k"),
        ("mean", "square"),
        lambda *_: None,
    )
    loader = getattr(importlib.import_module(ARCHITECTURES[case].module), case)
    model = loader.from_pretrained(folder, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    gradients = []
    for one in singles:
        logits = model(pixel_values=one["pixel_values"].double()).logits
        loss = functional.cross_entropy(logits, one["labels"] if labelled else logits.detach().argmax(-1))
        gradients.append(
            dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        )
    for site in sites:
        name = site.name
        for new, old in ARCHITECTURES[case].renames:
            name = name.replace(old, new)
        for kind, term in (("mean", lambda g: g), ("square", torch.square)):
            wanted = torch.stack([term(found[name]) for found in gradients]).mean(0)
            edge = float(wanted.abs().max())
            found = files.of(site)[kind].double()
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * edge + 1e-12)


@pytest.mark.parametrize("case", [VIT, DEIT])
def test_attention_is_what_the_stock_model_gives_each_patch(case: str, learnt: Learnt) -> None:
    folder, batch = learnt[case] / "model", batches(learnt[case])[0]
    model = StreamedModel(folder)
    states = model.start([batch])
    loader = getattr(importlib.import_module(ARCHITECTURES[case].module), case)
    whole = loader.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        wanted = whole(pixel_values=batch["pixel_values"].double(), output_attentions=True).attentions
    for index in range(model.layers):
        block = model.load_block(index)
        found = received_attention(model, block, states, 0)
        torch.testing.assert_close(found.double(), wanted[index].sum((1, 2)), rtol=1e-3, atol=1e-4)
        model.run_block(block, states)


def run(
    root: Path, work: Path, file: str, specification: dict[str, Any]
) -> tuple[Any, dict[str, Any], Recorder]:
    write_job(root, "model", {"dst_a": file}, specification)
    recorder = Recorder()
    outcome = pipeline.run(request(root, work), recorder)
    return outcome, json.loads(outcome.report.read_text()), recorder


def check_artifact(outcome: Any, report: dict[str, Any], file: Path, recovered: bool) -> None:
    """The artifact's accuracy, counted anew with the stock class, is what the report says of all pictures."""
    quality = report["quality"]
    assert report["verification"]["max_abs_difference"] <= 1e-4
    assert quality["headline"] == "accuracy"
    assert (quality["recovered"] is not None) == recovered
    assert report["summary"]["quality"]["dense"] == quality["dense"]["accuracy"] >= 0.9
    assert quality["dense"]["loss"] < 0.5
    assert report["data"]["overlap"].get("calibration", 0) == 0
    assert report["damage"]["divergence"]["pruned"]["top1_agreement"] > 0.5
    model, names = stock.load(outcome.artifact, "image-classification"), {"id2label": dict(enumerate(NAMES))}
    plan = ImagePlan(names, 3, of_model(24, 24), {"a": file}, held_out=["a"])
    right = 0
    for batch in plan.evaluation("a", None, 0).batches:
        with torch.no_grad():
            found = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)
        right += int((found == batch["labels"]).sum())
    assert quality[quality["final"]]["accuracy"] == right / 19
    assert json.loads((outcome.artifact / "preprocessor_config.json").read_text())["size"] == {
        "height": 24,
        "width": 24,
    }


def test_parquet_lora_on_labels_and_a_baseline(learnt: Learnt, tmp_path: Path) -> None:
    root = learnt[VIT]
    write_parquet(root / "a.parquet", IMAGES, LABELS, names=NAMES)
    recovery = {"method": "lora", "budget": {"steps": 8}, "options": {"loss": "task"}}
    gates = [{"metric": "accuracy", "min_ratio": 0.5}]
    wanted = spec("wanda", recovery=recovery, evaluation={"baselines": ["magnitude"], "gates": gates})
    outcome, report, _ = run(root, tmp_path / "work", "a.parquet", {**wanted, "target": {"sparsity": 0.7}})
    check_artifact(outcome, report, root / "a.parquet", recovered=True)
    assert report["gates"][0]["passed"] is True
    assert "accuracy" in str(report["baselines"] if "baselines" in report else report["quality"])
    assert report["data"]["evaluation"]["images"] == 19
    assert report["data"]["recovery"]["images"] == 72  # 8 steps of 8, and a tenth held out
    assert any("19 images" in note for note in report["notes"])
    page = outcome.report_html.read_text()
    assert "Evaluated on 19 images." in page
    assert "texts" not in page
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "model", outcome.artifact))
    sites = Inspection.from_json(admit_model(folder_sources(root / "model")).inspection).sites
    assert sum(int((after[site.name] == 0).sum()) for site in sites) == round(
        sum(s.size for s in sites) * 0.7
    )
    assert any(
        not torch.equal(after[site.name], before[site.name] * (after[site.name] != 0)) for site in sites
    )


@pytest.mark.parametrize("case", [pytest.param(DEIT, marks=pytest.mark.slow), SWIN])
def test_zip_distillation(case: str, learnt: Learnt, tmp_path: Path) -> None:
    root = learnt[case]
    write_zip(root / "a.zip", folders(IMAGES, LABELS, format="JPEG"))
    recovery = {"method": "distillation", "budget": {"steps": 8}}
    wanted = spec("magnitude", recovery=recovery, evaluation={"dataset": "dst_a"})
    outcome, report, _ = run(root, tmp_path / "work", "a.zip", {**wanted, "target": {"sparsity": 0.6}})
    check_artifact(outcome, report, root / "a.zip", recovered=True)


def test_tar_two_of_four(learnt: Learnt, tmp_path: Path) -> None:
    root = learnt[VIT]
    write_tar(root / "a.tar", folders(IMAGES, LABELS))
    wanted = spec("sparsegpt", structure={"granularity": "2:4"}, calibration={"samples": 500})
    outcome, report, recorder = run(root, tmp_path / "work", "a.tar", wanted)
    check_artifact(outcome, report, root / "a.tar", recovered=False)
    assert "The calibration dataset gives 77 images, not the 500 asked for." in recorder.messages


def test_a_killed_job_resumes_to_the_same_bytes(learnt: Learnt, tmp_path: Path) -> None:
    root = learnt[VIT]
    recovery = {"method": "lora", "budget": {"steps": 4}, "options": {"save_every": 2}}
    wanted = spec("sparsegpt", recovery=recovery, calibration={"samples": 8}, evaluation={"samples": 8})
    outcome, _, _ = run(root, tmp_path / "whole", "a.npz", wanted)
    assert run_and_kill(root, tmp_path / "work", "before_checkpoint_rename", 5) == -signal.SIGKILL
    again = pipeline.run(request(root, tmp_path / "work"), Recorder())
    assert hashes(outcome.artifact) == hashes(again.artifact)
